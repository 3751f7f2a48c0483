package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// image is one tree in the forms in which the daemons take it.
type image struct {
	tree      string // folder
	maker     string // program that made the image
	bootstrap string
	blobs     string // folder of the image's blobs
}

// prepareTree returns the folder to serve and to make images of, and makes it if it is
// not in the cache.
func prepareTree(ctx context.Context, o *options) (string, error) {
	if o.tree != "" {
		return filepath.Abs(o.tree)
	}
	cache, err := filepath.Abs(o.cache)
	if err != nil {
		return "", err
	}
	tree := filepath.Join(cache, "bookworm-python3")
	if err := once(tree, func(tmp string) error { return bootstrapDebian(ctx, tmp) }); err != nil {
		return "", fmt.Errorf("make a tree: %w", err)
	}
	return tree, nil
}

// prepareImage makes the image with nydus-image, so that all readers are given what
// the other project writes, or with our own program where that is missing. The two
// are kept apart, in the cache.
func prepareImage(ctx context.Context, o *options, tree string) (*image, error) {
	cache, err := filepath.Abs(o.cache)
	if err != nil {
		return nil, err
	}
	builders, err := findBuilders(o)
	if err != nil {
		return nil, err
	}
	maker := builders[len(builders)-1]
	made := filepath.Join(cache, "image-"+filepath.Base(tree))
	earlier := made + "-rafsd-"
	if maker.name == ownBuilder {
		// Another build may write another image; those of earlier ones are of no use.
		build, err := hashFile(maker.argv[0])
		if err != nil {
			return nil, err
		}
		made = fmt.Sprintf("%s%x", earlier, build[:6])
	}
	if err := once(made, func(tmp string) error { return makeImage(ctx, maker, tree, tmp) }); err != nil {
		return nil, fmt.Errorf("make an image: %w", err)
	}
	if maker.name == ownBuilder {
		if err := removeOthers(earlier, made); err != nil {
			return nil, err
		}
	}
	return &image{tree: tree, maker: maker.name, bootstrap: filepath.Join(made, "image.boot"), blobs: made}, nil
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

func makeImage(ctx context.Context, maker builder, tree, dir string) error {
	args := append(slices.Clone(maker.argv[1:]), "create", "--type", "dir-rafs", "--compressor", "zstd", "--log-level", "error",
		"--bootstrap", filepath.Join(dir, "image.boot"), "--blob-dir", dir, tree)
	return command(ctx, maker.argv[0], args...)
}

func command(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(program), err, out)
	}
	return nil
}
