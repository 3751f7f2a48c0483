package v5

import (
	"bytes"
	"slices"
	"testing"
)

func roundTrip[T comparable](t *testing.T, size int, v T, app func(*T, []byte) []byte, dec func([]byte) (T, error)) {
	t.Helper()
	b := app(&v, nil)
	if len(b) != size {
		t.Errorf("encoded length %d, want %d", len(b), size)
	}
	if got, err := dec(b); err != nil || got != v {
		t.Errorf("decode(encode(x)):\n got %+v, %v\nwant %+v", got, err, v)
	}
	if _, err := dec(b[:len(b)-1]); err == nil {
		t.Error("a record one byte short was decoded")
	}
}

func TestRecords(t *testing.T) {
	roundTrip(t, SuperSize, Super{
		Magic: Magic, Version: Version, Size: SuperSize, ChunkSize: 1, Flags: 2 << 40, Inodes: 3 << 40,
		InodeTableOffset: 4 << 40, PrefetchTableOffset: 5 << 40, BlobTableOffset: 6 << 40, InodeTableEntries: 7,
		PrefetchEntries: 8, BlobTableSize: 9, ExtBlobEntries: 10, ExtBlobTableOffset: 11 << 40,
	}, (*Super).Append, DecodeSuper)
	roundTrip(t, InodeSize, Inode{
		Digest: [32]byte{1, 31: 2}, Parent: 3 << 40, Ino: 4 << 40, UID: 5, GID: 6, ProjID: 7, Mode: 8, Size: 9 << 40,
		Blocks: 10 << 40, Flags: 11 << 40, Nlink: 12, ChildIndex: 13, ChildCount: 14, NameSize: 15, SymlinkSize: 16,
		Rdev: 17, MtimeNsec: 18, Mtime: -19,
	}, (*Inode).Append, DecodeInode)
	roundTrip(t, ExtBlobEntrySize, ExtBlobEntry{ChunkCount: 1, Features: 2, UncompressedSize: 3 << 40, CompressedSize: 4 << 40},
		(*ExtBlobEntry).Append, DecodeExtBlobEntry)
}

func TestXattrOffset(t *testing.T) {
	for _, tt := range []struct {
		inode Inode
		want  uint64
	}{
		{Inode{NameSize: 1}, 136},
		{Inode{NameSize: 8}, 136},
		{Inode{NameSize: 9, SymlinkSize: 100}, 144},
		{Inode{NameSize: 9, SymlinkSize: 100, Flags: InodeSymlink}, 144 + 104},
	} {
		if got := tt.inode.XattrOffset(); got != tt.want {
			t.Errorf("%+v: got %d, want %d", tt.inode, got, tt.want)
		}
	}
}

func TestXattrPair(t *testing.T) {
	b := AppendXattrPair(nil, "user.a", []byte("b\x00c"))
	name, value, n, err := DecodeXattrPair(append(bytes.Clone(b), 9))
	if err != nil || string(name) != "user.a" || string(value) != "b\x00c" || n != len(b) {
		t.Errorf("got %q, %q, %d, %v", name, value, n, err)
	}
	for i := range b {
		if _, _, _, err := DecodeXattrPair(b[:i]); err == nil {
			t.Errorf("%d of %d bytes were decoded", i, len(b))
		}
	}
	if _, _, _, err := DecodeXattrPair([]byte{2, 0, 0, 0, 'a', 'b', 0}); err == nil {
		t.Error("a pair without NUL was decoded")
	}
}

func TestBlobTable(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 9, 63, 64} {
		var want []BlobEntry
		for i := range 3 {
			if n > 0 {
				want = append(want, BlobEntry{uint32(i), uint32(i + 1), string(bytes.Repeat([]byte{'a' + byte(i)}, n))})
			}
		}
		b := AppendBlobTable(nil, want)
		if len(b)%Align != 0 {
			t.Errorf("ids of %d bytes: table of %d bytes is not padded", n, len(b))
		}
		got, err := DecodeBlobTable(b)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("ids of %d bytes: got %v, %v\nwant %v", n, got, err, want)
		}
	}
	if got, err := DecodeBlobTable(make([]byte, 16)); err == nil {
		t.Errorf("a table without ids was decoded: %v", got)
	}
}
