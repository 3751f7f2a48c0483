package main

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"text/tabwriter"
	"time"
)

// The layer of the mode "huge", and what making an image of it may take.
const (
	hugeEntries = 500_000
	hugeBytes   = 8 << 30
	aimBuildRSS = 64e6
)

type hugeLayer struct {
	entries int
	bytes   int64
}

// hugeReport is one program and the layer.
type hugeReport struct {
	Program string `json:"program"`
	Entries int    `json:"entries"`
	Input   uint64 `json:"input_bytes"`
	built
}

// huge lets every program make an image of a layer that is generated while they
// read it, from a FIFO, and looks at their memory.
func huge(ctx context.Context, o *options, work string, rep *report) error {
	builders, err := findBuilders(o)
	if err != nil {
		return err
	}
	if len(builders) == 1 {
		rep.leaveOut(peerBuilder, "images are made by this project alone and compared with nothing")
	}
	row := buildRow{name: "huge layer", kind: "tar-rafs", cores: min(2, runtime.NumCPU())}
	for _, b := range builders {
		fmt.Fprintf(os.Stderr, "make an image of a layer of %d entries and %d bytes with %s\n", o.huge.entries, o.huge.bytes, b.name)
		got, err := o.huge.make(ctx, b, row, work)
		if err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		rep.Huge = append(rep.Huge, hugeReport{Program: b.name, Entries: o.huge.entries, Input: uint64(o.huge.bytes), built: got})
	}
	return nil
}

// make lets one program make an image of the layer.
func (l hugeLayer) make(ctx context.Context, b builder, row buildRow, work string) (built, error) {
	fifo := filepath.Join(work, "layer.tar")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		return built{}, err
	}
	ctx, stop := context.WithTimeout(ctx, 2*time.Hour)
	defer stop()
	// A reader that does not read: the generator need not wait for the program to open
	// the FIFO, and ends when this is closed, whatever becomes of the program.
	end, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return built{}, err
	}
	generated := make(chan error, 1)
	go func() { generated <- l.feed(fifo) }()
	got, err := b.run(ctx, row, fifo, filepath.Join(work, "built"))
	err = errors.Join(err, end.Close(), <-generated, os.Remove(fifo))
	return got, err
}

// feed writes the layer into a FIFO.
func (l hugeLayer) feed(fifo string) error {
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	return errors.Join(writeHuge(w, l.entries, l.bytes), w.Flush(), f.Close())
}

// writeHuge writes a tar of so many entries and about so many bytes, always the
// same. Folders hold a hundred files; sizes are spread as in a root file system,
// most files small and most bytes in large ones; no two files are equal.
func writeHuge(w io.Writer, entries int, bytes int64) error {
	rng := rand.New(rand.NewPCG(1, 2))
	g := &generator{rng: rng, words: vocabulary(rng)}
	t := tar.NewWriter(w)
	mean := bytes / int64(entries)
	written := int64(0)
	for i := range entries {
		dir := fmt.Sprintf("srv/%03d/%03d", i/100/1000, i/100%1000)
		h := &tar.Header{
			Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755,
			ModTime: time.Unix(1_700_000_000+int64(i), 0), Format: tar.FormatPAX,
		}
		if i%100 != 0 {
			h.Typeflag, h.Name, h.Mode = tar.TypeReg, fmt.Sprintf("%s/file-%06d", dir, i), 0o644
			// Exponential, with what is missing so far spread over the rest.
			h.Size = int64(rng.ExpFloat64() * float64(mean))
			if behind := int64(i)*mean - written; behind > 64*mean {
				h.Size += behind
			}
		}
		written += h.Size
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if err := g.fill(t, h.Size); err != nil {
			return err
		}
	}
	return t.Close()
}

// generator makes content that compresses about as programs and texts do.
type generator struct {
	rng   *rand.Rand
	words []byte
	buf   []byte
}

// vocabulary is text in which words recur.
func vocabulary(rng *rand.Rand) []byte {
	var words [4096][]byte
	for i := range words {
		word := make([]byte, 2+rng.IntN(9))
		for j := range word {
			word[j] = byte('a' + rng.IntN(26))
		}
		words[i] = word
	}
	var out []byte
	for len(out) < 8<<20 {
		n := min(rng.IntN(len(words)), rng.IntN(len(words)))
		out = append(append(out, words[n]...), ' ')
	}
	return out
}

func (g *generator) fill(w io.Writer, size int64) error {
	for size > 0 {
		g.buf = g.buf[:0]
		for len(g.buf) < 64<<10 {
			n := 64 + g.rng.IntN(1024)
			at := g.rng.IntN(len(g.words) - n)
			g.buf = append(g.buf, g.words[at:at+n]...)
		}
		n := min(size, int64(len(g.buf)))
		if _, err := w.Write(g.buf[:n]); err != nil {
			return err
		}
		size -= n
	}
	return nil
}

func (r *report) printHuge(w io.Writer) {
	if len(r.Huge) == 0 {
		return
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	ours := r.Huge[0]
	fmt.Fprintf(tw, "\nlayer of %d entries, %d bytes, from a FIFO\tMB/s\tCPU, s\tpeak RSS, MB\toutput, MB\n", ours.Entries, ours.Input)
	for _, h := range r.Huge {
		fmt.Fprintf(tw, "%s\t%.1f\t%.1f\t%s\t%s\n", h.Program, float64(h.Input)/1e6/h.Wall, h.CPU, mega(h.RSS), mega(h.Bytes))
	}
	fmt.Fprintf(tw, "peak RSS of %s\t%s MB\tat most %s MB\t%s\n", ours.Program, mega(ours.RSS), mega(aimBuildRSS), met(ours.RSS <= aimBuildRSS))
	tw.Flush()
}
