package v6

import (
	"encoding/binary"
)

// DirentSize is the size of a Dirent on disk in bytes, without its name.
const DirentSize = 12

// MaxNameLen bounds the name of a directory entry in bytes.
const MaxNameLen = 255

// FileType is the type of a directory entry's inode.
type FileType uint8

// The types of EROFS.
const (
	TypeUnknown FileType = 0
	TypeRegular FileType = 1
	TypeDir     FileType = 2
	TypeChar    FileType = 3
	TypeBlock   FileType = 4
	TypeFifo    FileType = 5
	TypeSocket  FileType = 6
	TypeSymlink FileType = 7
)

// The file type bits of st_mode, by FileType.
var typeModes = [...]uint32{0, 0o100000, 0o040000, 0o020000, 0o060000, 0o010000, 0o140000, 0o120000}

// Mode is the S_IFMT bits of the type; 0 for TypeUnknown and what is no type.
func (t FileType) Mode() uint32 {
	if int(t) < len(typeModes) {
		return typeModes[t]
	}
	return 0
}

// TypeOf is the type of an inode with this st_mode, TypeUnknown for none.
func TypeOf(mode uint32) FileType {
	for t, m := range typeModes {
		if m != 0 && mode&0o170000 == m {
			return FileType(t)
		}
	}
	return TypeUnknown
}

// Dirent is a directory entry. A block of a directory holds entries, then their
// names in the same order; NameOff counts from the start of the block, so that
// of the first entry is also DirentSize times the number of entries.
type Dirent struct {
	NID     uint64
	NameOff uint16
	Type    FileType
}

// DecodeDirent decodes the entry at the start of b.
func DecodeDirent(b []byte) (Dirent, error) {
	if len(b) < DirentSize {
		return Dirent{}, short("dirent", len(b), DirentSize)
	}
	return Dirent{
		NID:     binary.LittleEndian.Uint64(b[0:]),
		NameOff: binary.LittleEndian.Uint16(b[8:]),
		Type:    FileType(b[10]),
	}, nil
}

// Append appends the entry to b.
func (d *Dirent) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, d.NID)
	b = binary.LittleEndian.AppendUint16(b, d.NameOff)
	return append(b, byte(d.Type), 0)
}
