package zstdenc

import (
	"bytes"
	"slices"
	"syscall"
	"testing"
)

// compareSearch has both ways to search look at all blocks of src, the one with before
// and the other with after.
func compareSearch(t *testing.T, src []byte, byHand, plain *Encoder) {
	t.Helper()
	p := paramsFor(len(src))
	byHand.begin(&p)
	plain.begin(&p)
	for at := 0; at < len(src); at += maxBlock {
		block := src[:min(at+maxBlock, len(src))]
		got := search(byHand, block, at, p.shift, p.tags)
		want := searchGo(plain, block, at, p.shift, p.tags)
		if got != want || byHand.rep != plain.rep {
			t.Errorf("block at %d of %d: last match ends at %d, offsets %v, want %d, %v", at, len(src), got, byHand.rep, want, plain.rep)
		}
		if !slices.Equal(byHand.seq[:byHand.seqs], plain.seq[:plain.seqs]) {
			t.Errorf("block at %d of %d: other sequences", at, len(src))
		}
		if !bytes.Equal(byHand.literals[:byHand.lits], plain.literals[:plain.lits]) {
			t.Errorf("block at %d of %d: other literals", at, len(src))
		}
	}
	if byHand.long != plain.long || byHand.short != plain.short {
		t.Errorf("%d bytes: other tables", len(src))
	}
}

func TestSearchAgrees(t *testing.T) {
	var byHand, plain Encoder
	for _, in := range inputs() {
		compareSearch(t, in, &byHand, &plain)
	}
	for _, in := range sources(t) {
		compareSearch(t, in, &byHand, &plain)
	}
}

// Nothing before an input is read, and nothing behind it: there are no pages.
func TestSearchStaysInside(t *testing.T) {
	const size = 256 << 10
	page := syscall.Getpagesize()
	pages, err := syscall.Mmap(-1, 0, size+2*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(pages)
	for _, at := range []int{0, page + size} {
		if err := syscall.Mprotect(pages[at:at+page], syscall.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	inside := pages[page : page+size]
	var byHand, plain Encoder
	for _, in := range inputs() {
		in = in[:min(len(in), size)]
		compareSearch(t, inside[:copy(inside, in)], &byHand, &plain)
		tail := inside[size-len(in):]
		copy(tail, in)
		compareSearch(t, tail, &byHand, &plain)
	}
}

// FuzzSearch: what is written by hand finds what the compiler's does.
func FuzzSearch(f *testing.F) {
	for _, in := range inputs() {
		f.Add(in[:min(len(in), 140_000)], uint8(0))
	}
	f.Add([]byte("0123456789abcdef"), uint8(200))
	f.Add([]byte("abcabcabcdabcd"), uint8(3))
	var byHand, plain Encoder
	f.Fuzz(func(t *testing.T, in []byte, repeat uint8) {
		compareSearch(t, nearly(in, repeat), &byHand, &plain)
	})
}
