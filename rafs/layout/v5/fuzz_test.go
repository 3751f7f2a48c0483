package v5

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// again decodes any bytes; what can be decoded must survive another round.
func again[T comparable](t *testing.T, b []byte, app func(*T, []byte) []byte, dec func([]byte) (T, error)) {
	t.Helper()
	first, err := dec(b)
	if err != nil {
		return
	}
	c := first
	out := app(&c, nil)
	if second, err := dec(out); err != nil || second != first {
		t.Errorf("decoded %+v from %x\nencoded %x\ndecoded %+v, %v", first, b, out, second, err)
	}
}

func FuzzRecords(f *testing.F) {
	super := Super{Magic: Magic, Version: Version, Size: SuperSize, ChunkSize: 1 << 20}
	f.Add(super.Append(nil))
	inode := Inode{Mode: 0o120777, Flags: InodeSymlink, NameSize: 3, SymlinkSize: 7}
	f.Add(inode.Append(nil))
	f.Add(bytes.Repeat([]byte{0xff}, ExtBlobEntrySize))
	f.Fuzz(func(t *testing.T, b []byte) {
		again(t, b, (*Super).Append, DecodeSuper)
		again(t, b, (*Inode).Append, DecodeInode)
		again(t, b, (*ExtBlobEntry).Append, DecodeExtBlobEntry)
		if in, err := DecodeInode(b); err == nil {
			if off := in.XattrOffset(); off%Align != 0 || off < InodeSize+uint64(in.NameSize) {
				t.Errorf("xattrs at %d of %+v", off, in)
			}
		}
	})
}

func FuzzBlobTable(f *testing.F) {
	f.Add(AppendBlobTable(nil, []BlobEntry{{1, 2, "a"}, {3, 4, strings.Repeat("b", 64)}}))
	f.Add(make([]byte, 16))
	f.Fuzz(func(t *testing.T, b []byte) {
		first, err := DecodeBlobTable(b)
		if err != nil {
			return
		}
		total := 0
		for _, e := range first {
			total += blobEntryHeader + len(e.ID)
		}
		if total > len(b) {
			t.Errorf("%d bytes of entries from %d", total, len(b))
		}
		out := AppendBlobTable(nil, first)
		if second, err := DecodeBlobTable(out); err != nil || !slices.Equal(first, second) {
			t.Errorf("decoded %v from %x\nencoded %x\ndecoded %v, %v", first, b, out, second, err)
		}
	})
}

func FuzzXattrPair(f *testing.F) {
	f.Add(AppendXattrPair(nil, "user.a", []byte("b\x00c")))
	f.Fuzz(func(t *testing.T, b []byte) {
		name, value, n, err := DecodeXattrPair(b)
		if err != nil {
			return
		}
		if out := AppendXattrPair(nil, string(name), value); n > len(b) || !bytes.Equal(out, b[:n]) {
			t.Errorf("%q=%q of %d bytes from %x, encoded %x", name, value, n, b, out)
		}
	})
}
