package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// image is one tree in the forms in which the daemons take it.
type image struct {
	tree      string // folder
	maker     string // program that made the image
	bootstrap string
	blobs     string // folder of the image's blobs
}

// prepare returns the tree and its image, and makes what is not in the cache.
func prepare(ctx context.Context, o *options) (*image, error) {
	cache, err := filepath.Abs(o.cache)
	if err != nil {
		return nil, err
	}
	tree := o.tree
	if tree == "" {
		tree = filepath.Join(cache, "bookworm-python3")
		if err := once(tree, func(tmp string) error { return bootstrapDebian(ctx, tmp) }); err != nil {
			return nil, fmt.Errorf("make a tree: %w", err)
		}
	} else if tree, err = filepath.Abs(tree); err != nil {
		return nil, err
	}
	return prepareImage(ctx, o, cache, tree)
}

// prepareImage makes the image with nydus-image, so that all readers are given what
// the other project writes, or with our own program where that is missing. The two
// are kept apart.
func prepareImage(ctx context.Context, o *options, cache, tree string) (*image, error) {
	if program := find(nydusImagePaths(o)); program != "" {
		made := filepath.Join(cache, "image-"+filepath.Base(tree))
		if err := once(made, func(tmp string) error { return makeImage(ctx, program, tree, tmp) }); err != nil {
			return nil, fmt.Errorf("make an image: %w", err)
		}
		return &image{tree: tree, maker: "nydus-image", bootstrap: filepath.Join(made, "image.boot"), blobs: made}, nil
	}
	program := find(ownPrograms(o))
	if program == "" {
		return nil, errors.New("neither nydus-image nor rafsd is there to make an image: make build, or make bench-peers")
	}
	build, err := hashFile(program)
	if err != nil {
		return nil, err
	}
	// Another build may write another image; those of earlier ones are of no use.
	ours := filepath.Join(cache, "image-"+filepath.Base(tree)+"-rafsd-")
	made := fmt.Sprintf("%s%x", ours, build[:6])
	if err := once(made, func(tmp string) error { return convertTree(ctx, program, tree, tmp) }); err != nil {
		return nil, fmt.Errorf("make an image: %w", err)
	}
	if err := removeOthers(ours, made); err != nil {
		return nil, err
	}
	return &image{
		tree: tree, maker: "rafsd convert", bootstrap: filepath.Join(made, "image.boot"),
		blobs: filepath.Join(made, "rafs", "blobs", "sha256"),
	}, nil
}

func nydusImagePaths(o *options) []string {
	if o.nydusImage != "" {
		return []string{o.nydusImage}
	}
	return []string{"nydus-image", "~/.cargo/bin/nydus-image"}
}

// removeOthers removes the folders whose names begin with prefix, but for one.
func removeOthers(prefix, keep string) error {
	all, err := filepath.Glob(prefix + "*")
	for _, dir := range all {
		if dir != keep {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	return err
}

// once makes the folder dir unless it is there, whole or not at all.
func once(dir string, fill func(tmp string) error) error {
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".making-")
	if err != nil {
		return err
	}
	if err := fill(tmp); err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	return os.Rename(tmp, dir)
}

func bootstrapDebian(ctx context.Context, dir string) error {
	program, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return fmt.Errorf("%w: install mmdebstrap or give a folder with -tree", err)
	}
	// mmdebstrap makes a folder's device nodes only as root; a tree without
	// them does as well.
	return command(ctx, program, "--variant=minbase", "--include=python3,python3-requests", "--format=directory", "bookworm", dir)
}

// makeImage makes an image as nydus makes it.
func makeImage(ctx context.Context, program, tree, dir string) error {
	return command(ctx, program, "create", "--type", "dir-rafs", "--compressor", "zstd", "--log-level", "error",
		"--bootstrap", filepath.Join(dir, "image.boot"), "--blob-dir", dir, tree)
}

func command(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(program), err, out)
	}
	return nil
}
