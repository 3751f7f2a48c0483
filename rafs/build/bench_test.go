package build

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// benchTree is a folder to make images of: RAFSD_BENCH_TREE, or else the packages
// and programs of this Go, which are text and machine code as images have them.
func benchTree(b *testing.B) string {
	if dir := os.Getenv("RAFSD_BENCH_TREE"); dir != "" {
		return dir
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	for _, part := range []string{"src", "pkg/tool", "bin"} {
		err := os.CopyFS(filepath.Join(dir, part), os.DirFS(filepath.Join(strings.TrimSpace(string(root)), part)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.Fatal(err)
		}
	}
	return dir
}

// benchLayer packs the files and folders of a folder as a layer of an OCI image.
func benchLayer(b *testing.B, dir string) string {
	name := filepath.Join(b.TempDir(), "layer.tar.gz")
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	err = filepath.WalkDir(dir, func(full string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() && !d.Type().IsRegular() || full == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		h.Name = full[len(dir)+1:]
		if err := w.WriteHeader(h); err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(full)
		if err == nil {
			_, err = w.Write(data)
		}
		return err
	})
	if err = errors.Join(err, w.Close(), z.Close(), f.Close()); err != nil {
		b.Fatal(err)
	}
	return name
}

// BenchmarkCreate makes images of one tree in the ways that are used most.
func BenchmarkCreate(b *testing.B) {
	dir := benchTree(b)
	layer := benchLayer(b, dir)
	for _, tc := range []struct {
		name   string
		adjust func(*Options)
	}{
		{"folder", func(*Options) {}},
		{"targz", func(o *Options) { o.Source, o.Type = layer, TargzRafs }},
		{"v5", func(o *Options) { o.Version = 5 }},
		{"batch", func(o *Options) { o.BatchSize = 1 << 20 }},
	} {
		b.Run(tc.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				o := Defaults()
				o.Source, o.BlobDir, o.TempDir = dir, b.TempDir(), b.TempDir()
				tc.adjust(&o)
				r, err := Create(context.Background(), o)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(r.BlobSize) // what comes out
			}
		})
	}
}
