package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/fetch"
)

// list yields segments and then an error, if there is one.
func list(segs []blob.Segment, err error) iter.Seq2[blob.Segment, error] {
	return func(yield func(blob.Segment, error) bool) {
		for _, s := range segs {
			if !yield(s, nil) {
				return
			}
		}
		if err != nil {
			yield(blob.Segment{}, err)
		}
	}
}

// tool is how tools configure an engine.
var tool = fetch.Options{MemoryLimit: 24 << 20, Recent: 4 << 20, Amplify: -1}

// A stream gives all bytes in order, whatever the sizes: chunks in and against
// the order of the blob, parts of them, holes, more than the window, none.
func TestStream(t *testing.T) {
	testenv.LeakCheck(t)
	sizes := append(repeat(3000, 700), 3<<20, 1, 16<<20, 4096, 5<<20, 77)
	im := newImage(t, blob.CompressorZstd, blob.DigesterBlake3, sizes...)
	e := engine(t, im, tool)
	all, want := im.whole(0, len(sizes))
	backwards, wantBack := []blob.Segment{}, []byte{}
	for i := len(sizes) - 1; i >= 0; i -= 7 {
		n := (sizes[i] + 1) / 2
		backwards = append(backwards, im.segment(i, n-1, sizes[i]-n+1), blob.Segment{Length: 5000})
		wantBack = append(append(wantBack, im.plain[i][n-1:]...), make([]byte, 5000)...)
	}
	for name, c := range map[string]struct {
		segs []blob.Segment
		want []byte
	}{"all": {all, want}, "backwards": {backwards, wantBack}, "none": {}} {
		s := e.Stream(t.Context(), list(c.segs, nil))
		got, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(c.want))
		}
		if _, err := s.Next(1); err != io.EOF {
			t.Errorf("%s: after the end: %v, want EOF", name, err)
		}
		s.Close()
	}
}

// Next never joins more than asked for and gives a chunk in one piece.
func TestStreamNext(t *testing.T) {
	im := newImage(t, blob.CompressorNone, blob.DigesterSHA256, 700<<10, 700<<10, 100, 2<<20)
	e := engine(t, im, tool)
	segs, _ := im.whole(0, 4)
	s := e.Stream(t.Context(), list(segs, nil))
	defer s.Close()
	for i, p := range im.plain {
		if got, err := s.Next(len(p)); err != nil || !bytes.Equal(got, p) {
			t.Errorf("chunk %d: %d bytes, %v, want %d", i, len(got), err, len(p))
		}
	}
}

// What fails comes in its place, after all bytes before it.
func TestStreamErrors(t *testing.T) {
	testenv.LeakCheck(t)
	im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, repeat(40, 300_000)...)
	e := engine(t, im, tool)
	segs, want := im.whole(0, 40)
	mine := errors.New("mine")
	s := e.Stream(t.Context(), list(segs, mine))
	if got, err := io.ReadAll(s); !errors.Is(err, mine) || !bytes.Equal(got, want) {
		t.Errorf("error of the sequence: %d bytes, %v, want %d", len(got), err, len(want))
	}
	s.Close()

	bad := *im
	bad.raw = bytes.Clone(im.raw)
	bad.raw[30*300_000+5] ^= 1
	e2 := engine(t, &bad, tool)
	s = e2.Stream(t.Context(), list(segs, nil))
	got, err := io.ReadAll(s)
	if !errors.Is(err, blob.ErrDigest) || !bytes.HasPrefix(want, got) || len(got) < 27*300_000 {
		t.Errorf("flipped bit in chunk 30: %d bytes, %v", len(got), err)
	}
	if _, again := s.Next(1); !errors.Is(again, blob.ErrDigest) {
		t.Errorf("then: %v, want the same", again)
	}
	s.Close()

	ctx, cancel := context.WithCancel(t.Context())
	s = e.Stream(ctx, list(segs, nil))
	if _, err := s.Next(1); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.Copy(io.Discard, s); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	s.Close()
}

// A stream that nobody reads stops at its bound, and Close ends it.
func TestStreamBounded(t *testing.T) {
	testenv.LeakCheck(t)
	im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, 1<<20)
	e := engine(t, im, tool)
	asked := make(chan int, 1000)
	s := e.Stream(t.Context(), func(yield func(blob.Segment, error) bool) {
		for i := 0; yield(im.segment(0, 0, 1<<20), nil); i++ {
			asked <- i
		}
	})
	if _, err := s.Next(1); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s.Close()
	if n := len(asked); n > 20 {
		t.Errorf("%d MiB asked for, want at most 20", n)
	}
	if _, err := s.Next(1); err == nil {
		t.Error("read after Close")
	}
}
