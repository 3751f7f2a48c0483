package blob

import "errors"

// Errors that callers tell apart. Each is wrapped with the blob, the chunk and
// the numbers by whoever finds it.
var (
	// ErrDigest means that bytes arrived whole but are not what the image says.
	ErrDigest = errors.New("digest mismatch")
	// ErrCorrupt means that compressed data does not decode to its exact size.
	ErrCorrupt = errors.New("corrupt data")
	// ErrBadID means that a blob id cannot be used as a name.
	ErrBadID = errors.New("bad blob id")
)
