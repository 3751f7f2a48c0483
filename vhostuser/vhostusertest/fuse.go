package vhostusertest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"syscall"
)

// Opcodes of FUSE (linux/fuse.h) that this driver sends.
const (
	OpLookup      uint32 = 1
	OpForget      uint32 = 2
	OpGetattr     uint32 = 3
	OpReadlink    uint32 = 5
	OpOpen        uint32 = 14
	OpRead        uint32 = 15
	OpStatfs      uint32 = 17
	OpRelease     uint32 = 18
	OpGetxattr    uint32 = 22
	OpListxattr   uint32 = 23
	OpFlush       uint32 = 25
	OpInit        uint32 = 26
	OpOpendir     uint32 = 27
	OpReaddir     uint32 = 28
	OpReleasedir  uint32 = 29
	OpDestroy     uint32 = 38
	OpReaddirplus uint32 = 44
)

var opNames = map[uint32]string{
	OpLookup: "LOOKUP", OpForget: "FORGET", OpGetattr: "GETATTR", OpReadlink: "READLINK", OpOpen: "OPEN",
	OpRead: "READ", OpStatfs: "STATFS", OpRelease: "RELEASE", OpGetxattr: "GETXATTR", OpListxattr: "LISTXATTR",
	OpFlush: "FLUSH", OpInit: "INIT", OpOpendir: "OPENDIR", OpReaddir: "READDIR", OpReleasedir: "RELEASEDIR",
	OpDestroy: "DESTROY", OpReaddirplus: "READDIRPLUS",
}

func opName(op uint32) string {
	if s := opNames[op]; s != "" {
		return s
	}
	return fmt.Sprintf("OPCODE(%d)", op)
}

// RootNode is the node id of the root (FUSE_ROOT_ID).
const RootNode uint64 = 1

// Sizes of the structures of linux/fuse.h, in bytes.
const (
	sizeInHeader  = 40
	sizeOutHeader = 16
	sizeAttr      = 88
	sizeAttrOut   = 16 + sizeAttr
	sizeEntryOut  = 40 + sizeAttr
	sizeDirent    = 24 // before the name
	sizeOpenOut   = 16
	sizeInitIn    = 64
	sizeInitOut   = 64
	sizeStatfsOut = 80
	sizeReadIn    = 40
	sizeXattrOut  = 8
	sizeForgetIn  = 8
	sizeReleaseIn = 24
)

// What a Linux 6.1 guest offers in INIT (qemu-system trace).
const (
	initMajor        = 7
	initMinor        = 38
	initFlags        = 0x7bff_fffb
	initFlags2       = 0xb
	initMaxReadahead = 0x20000
)

// maxName is the longest name that Linux takes from a directory, in bytes
// (FUSE_NAME_MAX).
const maxName = 1024

var le = binary.LittleEndian

// Attr is the fuse_attr of a node.
type Attr struct {
	Ino, Size, Blocks               uint64
	Atime, Mtime, Ctime             uint64
	AtimeNsec, MtimeNsec, CtimeNsec uint32
	Mode, Nlink, UID, GID           uint32
	Rdev, BlockSize, Flags          uint32
}

func decodeAttr(b []byte) Attr {
	u64 := func(i int) uint64 { return le.Uint64(b[8*i:]) }
	u32 := func(i int) uint32 { return le.Uint32(b[48+4*i:]) }
	return Attr{
		Ino: u64(0), Size: u64(1), Blocks: u64(2), Atime: u64(3), Mtime: u64(4), Ctime: u64(5),
		AtimeNsec: u32(0), MtimeNsec: u32(1), CtimeNsec: u32(2), Mode: u32(3), Nlink: u32(4),
		UID: u32(5), GID: u32(6), Rdev: u32(7), BlockSize: u32(8), Flags: u32(9),
	}
}

// IsDir says whether the node is a directory.
func (a Attr) IsDir() bool { return a.Mode&syscall.S_IFMT == syscall.S_IFDIR }

// IsRegular says whether the node is a regular file.
func (a Attr) IsRegular() bool { return a.Mode&syscall.S_IFMT == syscall.S_IFREG }

// IsSymlink says whether the node is a symbolic link.
func (a Attr) IsSymlink() bool { return a.Mode&syscall.S_IFMT == syscall.S_IFLNK }

// Entry is the answer to a LOOKUP. A Node of 0 is an absence that the guest may
// remember. EntryValid and AttrValid are in seconds.
type Entry struct {
	Node, Generation      uint64
	EntryValid, AttrValid uint64
	Attr                  Attr
}

func decodeEntry(b []byte) Entry {
	return Entry{
		Node: le.Uint64(b[0:]), Generation: le.Uint64(b[8:]), EntryValid: le.Uint64(b[16:]),
		AttrValid: le.Uint64(b[24:]), Attr: decodeAttr(b[40:]),
	}
}

// Dirent is one entry of a directory. Type is a DT_ constant, Off is where to go
// on after it. Entry is set by READDIRPLUS.
type Dirent struct {
	Ino, Off uint64
	Type     uint32
	Name     string
	Entry    Entry
}

// decodeDirents decodes the payload of READDIR or, with plus, READDIRPLUS.
func decodeDirents(b []byte, plus bool) ([]Dirent, error) {
	var out []Dirent
	for len(b) > 0 {
		entry, head, name, rest, err := nextDirent(b, plus)
		if err != nil {
			return nil, err
		}
		d := Dirent{Ino: le.Uint64(head[0:]), Off: le.Uint64(head[8:]), Type: le.Uint32(head[20:]), Name: string(name)}
		if plus {
			d.Entry = decodeEntry(entry)
		}
		out = append(out, d)
		b = rest
	}
	return out, nil
}

// LastDirent returns how many entries the payload of READDIR or, with plus,
// READDIRPLUS has, and where to go on after the last. It allocates nothing.
func LastDirent(b []byte, plus bool) (n int, off uint64, err error) {
	for len(b) > 0 {
		_, head, _, rest, err := nextDirent(b, plus)
		if err != nil {
			return 0, 0, err
		}
		n, off, b = n+1, le.Uint64(head[8:]), rest
	}
	return n, off, nil
}

// nextDirent cuts the first entry off b, which is not empty. A kernel stops at an
// entry that is cut off; here that is an error, as is a name that no kernel takes.
func nextDirent(b []byte, plus bool) (entry, head, name, rest []byte, err error) {
	if plus {
		if len(b) < sizeEntryOut {
			return nil, nil, nil, nil, fmt.Errorf("%w: %d bytes of an entry: want %d", ErrProtocol, len(b), sizeEntryOut)
		}
		entry, b = b[:sizeEntryOut], b[sizeEntryOut:]
	}
	if len(b) < sizeDirent {
		return nil, nil, nil, nil, fmt.Errorf("%w: %d bytes of a directory entry: want %d", ErrProtocol, len(b), sizeDirent)
	}
	n := uint64(le.Uint32(b[16:]))
	padded := (sizeDirent + n + 7) &^ 7
	if n == 0 || n > maxName || padded > uint64(len(b)) {
		return nil, nil, nil, nil, fmt.Errorf("%w: directory entry with a name of %d bytes in %d", ErrProtocol, n, len(b))
	}
	name = b[sizeDirent : sizeDirent+n]
	if bytes.IndexByte(name, '/') >= 0 || bytes.IndexByte(name, 0) >= 0 {
		return nil, nil, nil, nil, fmt.Errorf("%w: directory entry named %q", ErrProtocol, name)
	}
	return entry, b[:sizeDirent], name, b[padded:], nil
}

// InitReply is the answer to INIT.
type InitReply struct {
	Major, Minor        uint32
	MaxReadahead        uint32
	Flags               uint64 // flags2 in the high half
	MaxBackground       uint16
	CongestionThreshold uint16
	MaxWrite            uint32
	TimeGran            uint32
	MaxPages, MapAlign  uint16
}

func decodeInit(b []byte) InitReply {
	r := InitReply{
		Major: le.Uint32(b[0:]), Minor: le.Uint32(b[4:]), MaxReadahead: le.Uint32(b[8:]),
		Flags: uint64(le.Uint32(b[12:])), MaxBackground: le.Uint16(b[16:]), CongestionThreshold: le.Uint16(b[18:]),
		MaxWrite: le.Uint32(b[20:]), TimeGran: le.Uint32(b[24:]), MaxPages: le.Uint16(b[28:]), MapAlign: le.Uint16(b[30:]),
	}
	r.Flags |= uint64(le.Uint32(b[32:])) << 32
	return r
}

// Statfs is the fuse_kstatfs of a file system.
type Statfs struct {
	Blocks, Bfree, Bavail, Files, Ffree uint64
	BlockSize, NameLen, FragmentSize    uint32
}

func decodeStatfs(b []byte) Statfs {
	return Statfs{
		Blocks: le.Uint64(b[0:]), Bfree: le.Uint64(b[8:]), Bavail: le.Uint64(b[16:]), Files: le.Uint64(b[24:]),
		Ffree: le.Uint64(b[32:]), BlockSize: le.Uint32(b[40:]), NameLen: le.Uint32(b[44:]), FragmentSize: le.Uint32(b[48:]),
	}
}
