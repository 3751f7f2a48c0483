package tree

import (
	"encoding/binary"
	"errors"

	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/spill"
)

// Whiteouts of the OCI image specification, "Whiteouts".
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	// Names with this prefix, the opaque one aside, are bookkeeping of aufs.
	whiteoutMeta = ".wh..wh."
)

// Layer is one layer, before it is merged with others. It is spilled; until
// Merge takes it over it must be closed.
type Layer struct {
	// Entries is the number of entries that the layer had.
	Entries int
	// Bytes is the size of all files together.
	Bytes int64
	// DroppedXattrs counts xattrs in namespaces that EROFS and Linux do not have,
	// which are left out as unpackers leave them out.
	DroppedXattrs int
	// Implied counts the folders, the root aside, that the layer has files in but
	// no entry of. What they are like is the business of lower layers.
	Implied int

	tempDir string
	memory  int
	xattrs  *spill.Log
	refs    *spill.Log
	links   *spill.Log // pairs of events: one that is a hard link, what it links to
	// The entries that are left, by path: opDir, opNode, opLink, opWhiteout.
	left *spill.Run
	// What is beside them, by path: opQuery for lower layers, and opHeld.
	beside *spill.Run
}

func newLayer(o BuilderOptions) *Layer {
	return &Layer{
		tempDir: o.TempDir, memory: o.Memory,
		xattrs: spill.NewLog(o.TempDir, logCache),
		refs:   spill.NewLog(o.TempDir, logCache),
		links:  spill.NewLog(o.TempDir, logCache/4),
	}
}

// Close drops the layer. It may be called again.
func (l *Layer) Close() error {
	errs := []error{l.xattrs.Close(), l.refs.Close(), l.links.Close()}
	for _, r := range []*spill.Run{l.left, l.beside} {
		if r != nil {
			errs = append(errs, r.Close())
		}
	}
	return errors.Join(errs...)
}

const linkSize = 8 // of a pair in Layer.links, in bytes

// alias notes that event seq is the inode of event of.
func (l *Layer) alias(seq, of uint32) error {
	var b [linkSize]byte
	binary.LittleEndian.PutUint32(b[:], seq)
	binary.LittleEndian.PutUint32(b[4:], of)
	_, err := l.links.Append(b[:])
	return err
}

const refSize = 8 // in Layer.refs, in bytes

// listBuilder stores the chunks of a file.
type listBuilder struct {
	layer *Layer
	list  chunk.List
}

func (b *listBuilder) add(r chunk.Ref) error {
	l := &b.list
	if l.Count == 1 {
		off, err := b.layer.refs.Append(encodeRef(l.First))
		if err != nil {
			return err
		}
		l.Offset = off
	}
	if l.Count == 0 {
		l.First = r
	} else if _, err := b.layer.refs.Append(encodeRef(r)); err != nil {
		return err
	}
	l.Count++
	return nil
}

func encodeRef(r chunk.Ref) []byte {
	b := make([]byte, 0, refSize)
	b = binary.LittleEndian.AppendUint32(b, r.Blob)
	return binary.LittleEndian.AppendUint32(b, r.Index)
}

// readRefs lists the refs of a file of more than one chunk.
func (l *Layer) readRefs(list chunk.List, yield func(chunk.Ref, error) bool) {
	var buf [512 * refSize]byte
	for done := int64(0); done < int64(list.Count); {
		b := buf[:min(int64(len(buf)), (int64(list.Count)-done)*refSize)]
		if err := l.refs.Read(b, list.Offset+done*refSize); err != nil {
			yield(chunk.Ref{}, err)
			return
		}
		for ; len(b) > 0; b = b[refSize:] {
			if !yield(chunk.Ref{Blob: binary.LittleEndian.Uint32(b), Index: binary.LittleEndian.Uint32(b[4:])}, nil) {
				return
			}
			done++
		}
	}
}

func (l *Layer) readXattrs(off int64, n int) ([]Xattr, error) {
	b := make([]byte, n)
	if err := l.xattrs.Read(b, off); err != nil {
		return nil, err
	}
	var xattrs []Xattr
	d := decoder{b: b}
	for len(d.b) > 0 {
		xattrs = append(xattrs, Xattr{Name: d.text(), Value: d.text()})
	}
	if d.bad {
		return nil, errRecord
	}
	return xattrs, nil
}
