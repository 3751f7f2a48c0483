package estargz

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/tree"
)

// maxEntry bounds one entry of the table in bytes of JSON. Name, target and xattrs
// of an inode take less, in base64 and with every byte escaped.
const maxEntry = 2 << 20

// version of the tables that there are.
const version = 1

// tocEntry is one entry (stargz-snapshotter docs/estargz.md, "TOC, TOCEntries and
// Footer"). What we have no use for is not here.
type tocEntry struct {
	Name        string            `json:"name"`
	Type        string            `json:"type"`
	Size        uint64            `json:"size"`
	ModTime     string            `json:"modtime"`
	LinkName    string            `json:"linkName"`
	Mode        int64             `json:"mode"`
	UID         int64             `json:"uid"`
	GID         int64             `json:"gid"`
	DevMajor    uint64            `json:"devMajor"`
	DevMinor    uint64            `json:"devMinor"`
	Xattrs      map[string][]byte `json:"xattrs"`
	Offset      uint64            `json:"offset"`
	ChunkOffset uint64            `json:"chunkOffset"`
	ChunkSize   uint64            `json:"chunkSize"`
	ChunkDigest string            `json:"chunkDigest"`
	InnerOffset uint64            `json:"innerOffset"`
}

func (e *tocEntry) refuse(format string, args ...any) error {
	return &tree.EntryError{Name: e.Name, Reason: fmt.Sprintf(format, args...)}
}

// bounded ends with an error when more is read than it has been given.
type bounded struct {
	r    io.Reader
	left int
}

var errLong = fmt.Errorf("an entry of more than %d bytes", maxEntry)

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errLong
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// decodeTOC reads a table and gives its entries to add, in their order.
func decodeTOC(r io.Reader, add func(*tocEntry) error) error {
	b := &bounded{r: r, left: maxEntry}
	d := json.NewDecoder(b)
	seenVersion, seenEntries := false, false
	if err := expect(d, json.Delim('{')); err != nil {
		return fmt.Errorf("table of contents: %w", err)
	}
	for d.More() {
		b.left = maxEntry
		key, err := d.Token()
		if err != nil {
			return fmt.Errorf("table of contents: %w", err)
		}
		switch {
		case key == "version" && !seenVersion:
			var v uint64
			if err := d.Decode(&v); err != nil || v != version {
				return fmt.Errorf("table of contents: version %d, want %d: %w", v, version, errors.Join(err, errors.ErrUnsupported))
			}
			seenVersion = true
		case key == "entries" && !seenEntries:
			if err := decodeEntries(d, b, add); err != nil {
				return err
			}
			seenEntries = true
		default:
			var skip json.RawMessage
			if err := d.Decode(&skip); err != nil {
				return fmt.Errorf("table of contents: %v: %w", key, err)
			}
		}
	}
	if err := expect(d, json.Delim('}')); err != nil {
		return fmt.Errorf("table of contents: %w", err)
	}
	if !seenVersion || !seenEntries {
		return fmt.Errorf("table of contents: version there: %t, entries there: %t, want both", seenVersion, seenEntries)
	}
	return nil
}

func decodeEntries(d *json.Decoder, b *bounded, add func(*tocEntry) error) error {
	if err := expect(d, json.Delim('[')); err != nil {
		return fmt.Errorf("table of contents: entries: %w", err)
	}
	last := ""
	for n := 1; d.More(); n++ {
		b.left = maxEntry
		var e tocEntry
		if err := d.Decode(&e); err != nil {
			return fmt.Errorf("table of contents: entry %d, after %q: %w", n, last, err)
		}
		last = e.Name
		if err := add(&e); err != nil {
			return err
		}
	}
	if err := expect(d, json.Delim(']')); err != nil {
		return fmt.Errorf("table of contents: after %q: %w", last, err)
	}
	return nil
}

func expect(d *json.Decoder, want json.Delim) error {
	got, err := d.Token()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err == nil && got != want {
		err = fmt.Errorf("%v at byte %d, want %v", got, d.InputOffset(), want)
	}
	return err
}

// clean is a name without what means nothing in it. What must not be in it stays,
// for the builder to refuse.
func clean(name string) string {
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		if part != "" && part != "." {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "/")
}

var types = map[string]uint32{
	"dir": tree.TypeDir, "reg": tree.TypeFile, "symlink": tree.TypeLink,
	"char": tree.TypeChar, "block": tree.TypeBlock, "fifo": tree.TypeFifo,
}

// node is the entry for a tree.
func (e *tocEntry) node(path string) (*tree.Entry, error) {
	if e.Name == "" {
		return nil, e.refuse("empty name")
	}
	n := &tree.Entry{Path: path, Name: e.Name, Target: e.LinkName}
	if e.Type == "hardlink" {
		n.Kind = tree.KindHardLink
		return n, nil
	}
	kind, ok := types[e.Type]
	switch {
	case !ok:
		return nil, e.refuse("type %q", e.Type)
	case e.UID < 0 || e.UID > math.MaxUint32 || e.GID < 0 || e.GID > math.MaxUint32:
		return nil, e.refuse("owner %d:%d, want 32 bits", e.UID, e.GID)
	}
	n.Mode = kind | uint32(e.Mode)&0o7777
	n.UID, n.GID = uint32(e.UID), uint32(e.GID)
	switch kind {
	case tree.TypeFile:
		n.Size = e.Size
	case tree.TypeChar, tree.TypeBlock:
		if e.DevMajor >= 1<<12 || e.DevMinor >= 1<<20 {
			return nil, e.refuse("device %d:%d, want 12 and 20 bits", e.DevMajor, e.DevMinor)
		}
		major, minor := uint32(e.DevMajor), uint32(e.DevMinor)
		n.Rdev = minor&0xff | major<<8 | minor&^0xff<<12
	}
	if e.ModTime != "" {
		when, err := time.Parse(time.RFC3339Nano, e.ModTime)
		if err != nil {
			return nil, e.refuse("time %q: %v", e.ModTime, err)
		}
		n.Mtime, n.MtimeNsec = when.Unix(), uint32(when.Nanosecond())
	}
	for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
		n.Xattrs = append(n.Xattrs, tree.Xattr{Name: name, Value: string(e.Xattrs[name])})
	}
	return n, nil
}

// digest is that of the chunk.
func (e *tocEntry) digest() (d blob.Digest, err error) {
	text, ok := strings.CutPrefix(e.ChunkDigest, "sha256:")
	if !ok || len(text) != 2*len(d) {
		return d, e.refuse("chunk digest %q, want sha256: and %d digits", e.ChunkDigest, 2*len(d))
	}
	if _, err := hex.Decode(d[:], []byte(text)); err != nil {
		return d, e.refuse("chunk digest %q: %v", e.ChunkDigest, err)
	}
	return d, nil
}
