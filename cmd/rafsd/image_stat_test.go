package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/rafs/blob"
)

// A chunk is one by its digest and its size, and counts once for each image that was
// read to its end.
func TestChunkTally(t *testing.T) {
	for _, many := range []int{1, 50_000} { // of these in memory, and spilled
		tally := newChunkTally(t.TempDir())
		add := func(digester blob.Digester, first byte, size, compressed uint32) {
			c := blob.Chunk{Blob: &blob.Info{Digester: digester}, CompressedSize: compressed, UncompressedSize: size}
			c.Digest[0] = first
			if err := tally.add(&c); err != nil {
				t.Fatal(err)
			}
		}
		tally.begin(true)
		for range many {
			add(blob.DigesterSHA256, 2, 10, 7)
		}
		add(blob.DigesterSHA256, 1, 10, 5)
		add(blob.DigesterBlake3, 1, 10, 5)
		add(blob.DigesterSHA256, 1, 20, 6)
		tally.begin(true)
		add(blob.DigesterSHA256, 1, 10, 5)
		add(blob.DigesterSHA256, 3, 10, 5)
		tally.drop()
		tally.begin(false)
		add(blob.DigesterSHA256, 2, 10, 8)
		var got []string
		if err := tally.each(func(c *chunkUse) { got = append(got, fmt.Sprint(c.size, c.images)) }); err != nil {
			t.Fatal(err)
		}
		slices.Sort(got)
		want := "10 [{0 5}], 10 [{0 5}], 10 [{0 7} {2 8}], 20 [{0 6}]"
		if s := strings.Join(got, ", "); s != want {
			t.Errorf("%d times: got %s, want %s", many, s, want)
		}
		if err := tally.close(); err != nil {
			t.Error(err)
		}
	}
}

// An inode with many names is visited once, whatever its number.
func TestNodeSet(t *testing.T) {
	set := newNodeSet(t.TempDir())
	for _, node := range []uint64{1 << 40, 0, 3, 0, 1 << 40} {
		if err := set.add(node); err != nil {
			t.Fatal(err)
		}
	}
	var got []uint64
	if err := set.each(func(node uint64) error { got = append(got, node); return nil }); err != nil {
		t.Fatal(err)
	}
	if want := []uint64{0, 3, 1 << 40}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	set, failed := newNodeSet(t.TempDir()), errors.New("no more")
	if err := errors.Join(set.add(1), set.add(2)); err != nil {
		t.Fatal(err)
	}
	if err := set.each(func(uint64) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("got %v, want %v", err, failed)
	}
}
