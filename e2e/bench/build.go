package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// builder is a program with nydus-image's grammar.
type builder struct {
	name string
	argv []string // program and what comes before "create"
}

// The builders' names, as they are printed.
const (
	ownBuilder  = "rafsd image"
	peerBuilder = "nydus-image"
)

// buildRow is one way to make an image.
type buildRow struct {
	name, kind string
	packed     bool    // the source is the tree as tar.gz
	cores      int     // that the program may use
	aim        float64 // of nydus-image's speed
}

var buildRows = []buildRow{
	{"folder, one core", "dir-rafs", false, 1, 1},
	{"tar.gz, one core", "targz-rafs", true, 1, 1},
	{"folder, two cores", "dir-rafs", false, 2, 1.5},
	{"tar.gz, two cores", "targz-rafs", true, 2, 1.5},
}

// built is one image and what making it took.
type built struct {
	usage
	Bytes uint64 `json:"output_bytes"` // bootstrap and blob
}

// findBuilders returns our own program first, then nydus-image if it is there.
func findBuilders(o *options) ([]builder, error) {
	own := find(ownPrograms(o))
	if own == "" {
		return nil, errors.New("no program of this project to make images with: make build")
	}
	out := []builder{{ownBuilder, []string{own, "image"}}}
	if p := find(nydusImagePaths(o)); p != "" {
		out = append(out, builder{peerBuilder, []string{p}})
	}
	return out, nil
}

// build measures how images are made, in rounds, each beginning with another
// program. What is read is in the page cache: a round before the first is not
// counted.
func build(ctx context.Context, o *options, tree, work string, rep *report) error {
	builders, err := findBuilders(o)
	if err != nil {
		return err
	}
	if len(builders) == 1 {
		rep.leaveOut(peerBuilder, "images are made by this project alone and compared with nothing")
	}
	packed := filepath.Join(work, "tree.tar.gz")
	if err := command(ctx, "tar", "-C", tree, "--numeric-owner", "-czf", packed, "."); err != nil {
		return err
	}
	defer os.Remove(packed)
	total, err := treeBytes(tree)
	if err != nil {
		return err
	}
	for _, row := range buildRows {
		if !o.rows.MatchString(row.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "make an image of a %s\n", row.name)
		source := tree
		if row.packed {
			source = packed
		}
		samples, err := row.measure(ctx, builders, o.rounds, source, filepath.Join(work, "built"))
		if err != nil {
			return err
		}
		rep.addBuild(row, total, builders, samples)
	}
	return nil
}

// measure returns samples[builder][round].
func (row buildRow) measure(ctx context.Context, builders []builder, rounds int, source, out string) ([][]built, error) {
	samples := make([][]built, len(builders))
	for round := -1; round < rounds; round++ {
		for i := range builders {
			n := (i + max(round, 0)) % len(builders)
			b, err := builders[n].run(ctx, row, source, out)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", builders[n].name, row.name, err)
			}
			if round >= 0 {
				samples[n] = append(samples[n], b)
			}
		}
	}
	return samples, nil
}

// run makes one image and removes it.
func (b builder) run(ctx context.Context, row buildRow, source, out string) (built, error) {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return built{}, err
	}
	cpus := []string{"0", "0,1"}[row.cores-1]
	argv := append([]string{"taskset", "-c", cpus}, b.argv...)
	argv = append(argv, "create", "--type", row.kind, "--compressor", "zstd", "--fs-version", "6", "--log-level", "error",
		"--bootstrap", filepath.Join(out, "image.boot"), "--blob-dir", out, source)
	used, err := measure(ctx, argv)
	if err != nil {
		return built{}, errors.Join(err, os.RemoveAll(out))
	}
	size, err := treeBytes(out)
	return built{used, size}, errors.Join(err, os.RemoveAll(out))
}

// treeBytes adds up the sizes of the regular files in a folder.
func treeBytes(dir string) (total uint64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			total += uint64(fi.Size())
		}
		return err
	})
	return total, err
}
