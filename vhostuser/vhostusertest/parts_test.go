package vhostusertest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"
)

func TestMemory(t *testing.T) {
	m, err := NewMemory([]Region{{Size: 2 * PageSize}, {GPA: 1 << 32, Size: PageSize}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, tc := range []struct {
		gpa  uint64
		n    int
		want bool
	}{
		{0, 2 * PageSize, true},
		{0, 2*PageSize + 1, false},
		{2*PageSize - 1, 1, true},
		{2 * PageSize, 0, false},
		{1<<32 - 1, 1, false},
		{1 << 32, PageSize, true},
		{1<<32 + 1, PageSize, false},
		{0, -1, false},
	} {
		if b, err := m.Bytes(tc.gpa, tc.n); (err == nil) != tc.want || err == nil && len(b) != tc.n {
			t.Errorf("bytes of %#x+%d = %d bytes, %v, want ok = %v", tc.gpa, tc.n, len(b), err, tc.want)
		}
	}
	if a, b := m.UserAddr(0), m.UserAddr(1<<32); a == 0 || b < a+3*PageSize {
		t.Errorf("user addresses %#x and %#x: want a gap between the regions", a, b)
	}
	first, err := m.Alloc(1, 64)
	if err != nil || first.GPA != PageSize {
		t.Errorf("first allocation at %#x (%v), want %#x: address 0 is nobody's", first.GPA, err, PageSize)
	}
	second, err := m.Alloc(PageSize, PageSize)
	if err != nil || second.GPA != 1<<32 {
		t.Errorf("a page at %#x (%v), want %#x", second.GPA, err, uint64(1)<<32)
	}
	if _, err := m.Alloc(PageSize, 1); err == nil {
		t.Error("a third page was given out of three, one of them nobody's")
	}
	for _, r := range []Region{{}, {Size: 1}, {GPA: 1, Size: PageSize}, {GPA: 1<<64 - PageSize, Size: 2 * PageSize}} {
		if m, err := NewMemory([]Region{r}); err == nil {
			t.Errorf("memory of %+v was made", r)
			_ = m.Close()
		}
	}
}

func TestDirents(t *testing.T) {
	dirent := func(ino, off uint64, typ uint32, name string) []byte {
		b := binary.LittleEndian.AppendUint64(nil, ino)
		b = binary.LittleEndian.AppendUint64(b, off)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(name)))
		b = append(binary.LittleEndian.AppendUint32(b, typ), name...)
		return append(b, make([]byte, -len(b)&7)...)
	}
	good := append(dirent(1, 5, 4, "."), dirent(7, 9, 8, "eight888")...)
	got, err := decodeDirents(good, false)
	if want := []Dirent{{1, 5, 4, ".", Entry{}}, {7, 9, 8, "eight888", Entry{}}}; err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("decode = %+v, %v, want %+v", got, err, want)
	}
	if n, off, err := LastDirent(good, false); n != 2 || off != 9 || err != nil {
		t.Errorf("last = %d, %d, %v, want 2, 9", n, off, err)
	}
	plus := append(make([]byte, sizeEntryOut), dirent(7, 9, 8, "f")...)
	plus[0] = 42
	if got, err := decodeDirents(plus, true); err != nil || len(got) != 1 || got[0].Entry.Node != 42 || got[0].Name != "f" {
		t.Errorf("decode with entries = %+v, %v", got, err)
	}
	for name, b := range map[string][]byte{
		"cut off head":    good[:20],
		"cut off padding": good[:len(good)-1],
		"no name":         dirent(1, 1, 1, ""),
		"slash":           dirent(1, 1, 1, "a/b"),
		"NUL":             dirent(1, 1, 1, "a\x00b"),
		"long name":       dirent(1, 1, 1, string(bytes.Repeat([]byte("x"), 1025))),
	} {
		if _, err := decodeDirents(b, false); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: decode = %v, want ErrProtocol", name, err)
		}
	}
	if _, err := decodeDirents(plus[:100], true); !errors.Is(err, ErrProtocol) {
		t.Errorf("cut off entry: decode = %v, want ErrProtocol", err)
	}
}

func TestHistogram(t *testing.T) {
	var h Histogram
	if got := h.Quantile(0.5); got != 0 {
		t.Errorf("median of nothing = %v, want 0", got)
	}
	for i := range 1000 {
		h.Record(time.Duration(i+1) * time.Microsecond)
	}
	for _, tc := range []struct {
		q    float64
		want time.Duration
	}{{0.5, 500 * time.Microsecond}, {0.99, 990 * time.Microsecond}, {1, time.Millisecond}, {0, time.Microsecond}} {
		got := h.Quantile(tc.q)
		if got < tc.want || got > tc.want+tc.want/32+1 {
			t.Errorf("quantile %v = %v, want %v and up to 1/32 more", tc.q, got, tc.want)
		}
	}
	for _, ns := range []uint64{0, 1, 31, 32, 33, 63, 64, 65, 1 << 20, 1<<20 + 1, 1<<40 - 1} {
		if i := bucket(ns); upper(i) < ns || i > 0 && upper(i-1) >= ns {
			t.Errorf("%d ns is in bucket %d, which ends at %d after %d", ns, i, upper(i), upper(max(i-1, 0)))
		}
	}
	h.Record(1 << 62) // beyond the last bucket
	h.Record(-1)
	var sum Histogram
	sum.Add(&h)
	sum.Add(&h)
	if sum.Count() != 2*1002 {
		t.Errorf("count = %d, want %d", sum.Count(), 2*1002)
	}
}
