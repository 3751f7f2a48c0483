package build

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
)

// news remembers what Host.Progress was told.
type news struct {
	t           *testing.T
	done, total int64
	calls       int
}

func (n *news) host() Host {
	return Host{TempDir: n.t.TempDir(), Progress: func(done, total int64) {
		n.t.Helper()
		if done < n.done || done > total {
			n.t.Errorf("progress of %d of %d bytes after %d", done, total, n.done)
		}
		n.done, n.total, n.calls = done, total, n.calls+1
	}}
}

func (n *news) complete(what string, total int64) {
	n.t.Helper()
	if n.calls == 0 || n.done != total || n.total != total {
		n.t.Errorf("%s: told %d times, at last %d of %d bytes, want all of %d", what, n.calls, n.done, n.total, total)
	}
}

// Whatever takes an image that exists tells of all of it.
func TestProgress(t *testing.T) {
	dir := t.TempDir()
	images := versions(t, 6, dir)
	sources, bytes := []string(nil), int64(0)
	for _, r := range images {
		st, err := os.Stat(r.Bootstrap)
		must(t, err)
		sources, bytes = append(sources, r.Bootstrap), bytes+st.Size()
	}
	n := &news{t: t}
	merged, err := Merge(context.Background(), MergeOptions{
		Host: n.host(), Sources: sources, Bootstrap: filepath.Join(t.TempDir(), "m"),
	})
	must(t, err)
	n.complete("merge", bytes)

	n = &news{t: t}
	_, err = Dictionary(context.Background(), DictionaryOptions{Host: n.host(), Sources: sources, BlobDir: t.TempDir()})
	must(t, err)
	n.complete("dictionary", bytes)

	n = &news{t: t}
	_, err = Compact(context.Background(), CompactOptions{
		Host: n.host(), Source: merged.Bootstrap, Blobs: local(t, dir), Bootstrap: filepath.Join(t.TempDir(), "c"), BlobDir: t.TempDir(),
	})
	must(t, err)
	used := int64(0)
	im := openTest(t, merged.Bootstrap)
	for i := range im.Blobs() {
		for c := range im.BlobChunks(uint32(i)) {
			used += int64(c.UncompressedSize)
		}
	}
	n.complete("compact", used)

	n = &news{t: t}
	_, err = Optimize(context.Background(), OptimizeOptions{
		Host: n.host(), Source: merged.Bootstrap, Blobs: local(t, dir), Files: []PrefetchFile{{Path: "/same"}, {Path: "/own1"}},
		Bootstrap: filepath.Join(t.TempDir(), "o"), BlobDir: t.TempDir(),
	})
	must(t, err)
	n.complete("optimize", 2<<20+77+300000)
}

// A fifo that nobody writes to, or that somebody has left open, keeps no build from
// ending when it is told to.
func TestCreateFromSilentFIFO(t *testing.T) {
	for _, typ := range []SourceType{TarRafs, TargzRef} {
		for _, writer := range []bool{false, true} {
			testenv.LeakCheck(t)
			o := options(t, filepath.Join(t.TempDir(), "fifo"))
			o.Type = typ
			must(t, unix.Mkfifo(o.Source, 0o600))
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() {
				_, err := Create(ctx, o)
				done <- err
			}()
			if writer {
				w, err := os.OpenFile(o.Source, os.O_WRONLY, 0) // waits for the reader
				must(t, err)
				defer w.Close()
			}
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("type %v, writer %t: %v, want context.Canceled", typ, writer, err)
			}
		}
	}
}
