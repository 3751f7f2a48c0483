// Package snapshottercompat holds the images of this project against the Go
// packages of nydus-snapshotter, which nodes and converters read and make RAFS
// images with: its names for media types and annotations, its reader of blobs, and
// its converter with this project's binary in the place of nydus-image.
//
// It is a module of its own, so that those packages, and all that they need, stay
// out of the other one. It has tests only.
package snapshottercompat
