// Package rafstest says what a reader of an image must see and tells whether it
// does: a manifest of a tree, and a comparison that takes entries from anywhere,
// be it the image itself, a mounted file system or the inside of a guest. It also
// reads chunks by the shortest way there is, as a second opinion on the engine,
// and names the images to try.
//
// It is for tests and trusts what it is given.
package rafstest

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
)

// Entry is one name of a tree.
type Entry struct {
	Path      string // absolute, any bytes
	Mode      uint32 // st_mode with its type
	UID, GID  uint32
	Nlink     uint32 // not compared for folders
	Size      uint64 // not compared for folders
	Mtime     int64
	MtimeNsec uint32
	Rdev      uint32            // of devices, as Linux encodes it in 32 bits
	Link      string            // target of a symbolic link
	SHA256    string            // of a regular file's content, in hex
	Xattrs    map[string]string // values as they are
}

// IsDir tells whether the entry is a folder.
func (e *Entry) IsDir() bool { return e.Mode&0o170000 == 0o040000 }

// IsRegular tells whether the entry is a regular file.
func (e *Entry) IsRegular() bool { return e.Mode&0o170000 == 0o100000 }

// line is an Entry in a manifest.
type line struct {
	Path      string            `json:"path"`
	Mode      string            `json:"mode"`
	UID       uint32            `json:"uid"`
	GID       uint32            `json:"gid"`
	Nlink     uint32            `json:"nlink,omitempty"`
	Size      uint64            `json:"size"`
	Mtime     int64             `json:"mtime"`
	MtimeNsec uint32            `json:"mtime_nsec"`
	Rdev      uint32            `json:"rdev,omitempty"`
	Link      string            `json:"link,omitempty"`
	SHA256    string            `json:"sha256,omitempty"`
	Xattrs    map[string]string `json:"xattrs,omitempty"`
}

// hexPrefix marks a path or target that is no UTF-8 and stands in hex.
const hexPrefix = "hex:"

// Manifest reads a manifest file: a JSON object a line. The root is not in it.
func Manifest(t testing.TB, path string) []Entry {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	entries, err := ParseManifest(f)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return entries
}

// ParseManifest reads a manifest.
func ParseManifest(r io.Reader) ([]Entry, error) {
	var out []Entry
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var l line
		if err := json.Unmarshal(in.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("manifest line %d: %w", len(out)+1, err)
		}
		e, err := l.entry()
		if err != nil {
			return nil, fmt.Errorf("manifest line %d: %w", len(out)+1, err)
		}
		out = append(out, e)
	}
	return out, in.Err()
}

func (l *line) entry() (Entry, error) {
	e := Entry{
		UID: l.UID, GID: l.GID, Nlink: l.Nlink, Size: l.Size, Mtime: l.Mtime, MtimeNsec: l.MtimeNsec,
		Rdev: l.Rdev, SHA256: l.SHA256,
	}
	mode, err := strconv.ParseUint(l.Mode, 8, 32)
	if err != nil {
		return e, err
	}
	e.Mode = uint32(mode)
	if e.Path, err = unhex(l.Path); err != nil {
		return e, err
	}
	if e.Link, err = unhex(l.Link); err != nil {
		return e, err
	}
	if len(l.Xattrs) > 0 {
		e.Xattrs = make(map[string]string, len(l.Xattrs))
	}
	for name, v := range l.Xattrs {
		value, err := hex.DecodeString(v)
		if err != nil {
			return e, err
		}
		if name, err = unhex(name); err != nil {
			return e, err
		}
		e.Xattrs[name] = string(value)
	}
	return e, nil
}

func unhex(s string) (string, error) {
	rest, ok := strings.CutPrefix(s, hexPrefix)
	if !ok {
		return s, nil
	}
	b, err := hex.DecodeString(rest)
	return string(b), err
}

// WholeSeconds drops the nanoseconds, which images made from tars lack.
func WholeSeconds(entries []Entry) []Entry {
	out := make([]Entry, len(entries))
	for i, e := range entries {
		e.MtimeNsec = 0
		out[i] = e
	}
	return out
}
