package image

import "math/bits"

// Limits on what a stranger's image may make this package do. Each is far above
// what converters write and keeps the walk at open, and one answer, bounded.
const (
	// MaxBootstrap is the largest bootstrap of the format in bytes
	// (RAFS_MAX_METADATA_SIZE, nydus rafs/src/metadata/mod.rs).
	MaxBootstrap = 2 << 30
	// maxInodes bounds inodes and names: an inode with its name takes some 100
	// bytes, so that MaxBootstrap has no room for many more.
	maxInodes = 1 << 24
	// maxEntries bounds one folder; ext4 without large_dir stops near 10 million.
	maxEntries = 10_000_000
	// maxXattrBytes bounds the xattrs of one inode. The kernel takes values of 64
	// KiB and lists of 64 KiB; v6 cannot say more than 256 KiB.
	maxXattrBytes = 1 << 20
	// maxSymlink is PATH_MAX without its NUL.
	maxSymlink = 4095
	// maxName is NAME_MAX.
	maxName = 255
	// maxXattrName is XATTR_NAME_MAX.
	maxXattrName = 255
	// maxBlobs bounds the blob table of v5; v6 has 8 bits for a device.
	maxBlobs = 1024
	// maxFileSize is the largest offset that the kernel knows.
	maxFileSize = 1<<63 - 1
	// nsecs is where tv_nsec ends.
	nsecs = 1_000_000_000
)

// region is the bytes of a bootstrap.
type region []byte

// slice returns n bytes at off, false if they do not lie inside.
func (r region) slice(off, n uint64) ([]byte, bool) {
	size := uint64(len(r))
	if off > size || n > size-off {
		return nil, false
	}
	return r[off : off+n : off+n], true
}

// from returns all bytes at and after off, none if off lies outside.
func (r region) from(off uint64) []byte {
	if off > uint64(len(r)) {
		return nil
	}
	return r[off:]
}

// table is a range of the bootstrap with a name for errors.
type table struct {
	name     string
	off, len uint64
}

// checkTables refuses tables that are not inside the bootstrap, not aligned, or
// not apart from each other. A table without bytes is nowhere.
func checkTables(size uint64, align uint64, tables []table) error {
	for i, t := range tables {
		if t.len == 0 {
			continue
		}
		end, carry := bits.Add64(t.off, t.len, 0)
		if carry != 0 || end > size {
			return corrupt(t.off, "%s of %d bytes ends beyond the bootstrap of %d", t.name, t.len, size)
		}
		if t.off%align != 0 {
			return corrupt(t.off, "%s is not aligned to %d", t.name, align)
		}
		for _, o := range tables[:i] {
			if o.len != 0 && t.off < o.off+o.len && o.off < end {
				return corrupt(t.off, "%s overlaps %s at %#x", t.name, o.name, o.off)
			}
		}
	}
	return nil
}

// budget holds how many bytes inodes may still claim. What converters write is
// disjoint, so that all claims together cannot exceed the bootstrap; where they
// do, parts overlap, and walking them all could take for ever.
type budget uint64

func (b *budget) take(off, n uint64) error {
	if n > uint64(*b) {
		return corrupt(off, "%d bytes claimed, %d left: inodes overlap", n, uint64(*b))
	}
	*b -= budget(n)
	return nil
}

// bitset is a set of small numbers.
type bitset []uint64

func newBitset(n uint64) bitset { return make(bitset, (n+63)/64) }

func (s bitset) has(i uint64) bool {
	w := i / 64
	return w < uint64(len(s)) && s[w]>>(i%64)&1 != 0
}

func (s bitset) add(i uint64) { s[i/64] |= 1 << (i % 64) }

// badName says what is wrong with the name of a directory entry, "" if nothing.
// "." and ".." are for the caller.
func badName(name []byte) string {
	if len(name) == 0 {
		return "empty name"
	}
	if len(name) > maxName {
		return "name longer than 255 bytes"
	}
	for _, c := range name {
		if c == '/' || c == 0 {
			return "name with a slash or NUL"
		}
	}
	return ""
}
