package tree

import (
	"encoding/binary"
	"errors"
	"iter"
	"math"
	"slices"
	"strings"

	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/spill"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

const (
	// defaultMemory is what the entries of a layer take while they come, in bytes.
	defaultMemory = 1 << 20
	// logCache is what a log of a layer keeps in memory, in bytes.
	logCache = 16 << 10
)

// maxXattrs bounds the xattrs of one inode in bytes on disk: a count of 4-byte
// units in 16 bits, the first of which is the header.
const maxXattrs = v6.XattrHeaderSize + 4*(math.MaxUint16-1)

// BuilderOptions say how a Builder works. Zero fields take the default.
type BuilderOptions struct {
	// TempDir takes what is spilled; os.TempDir by default.
	TempDir string
	Limits  Limits
	// Memory bounds what sorting the entries takes, in bytes; 1 MiB by default.
	Memory int
}

// Builder makes a layer of entries. Their order counts as it does for an
// unpacker: the last one of a path wins, whoever removes a folder removes what is
// in it, a hard link names what was at its target when it came.
type Builder struct {
	opts   BuilderOptions
	layer  *Layer
	events *spill.Sorter // by path
	inodes *spill.Sorter // by Entry.Inode
	meta   int64         // bytes of names, targets and xattrs so far
	key    []byte        // reused
	value  []byte
}

// NewBuilder starts a layer. The Builder must be closed.
func NewBuilder(o BuilderOptions) (*Builder, error) {
	o.Limits = o.Limits.withDefaults()
	if o.Memory == 0 {
		o.Memory = defaultMemory
	}
	return &Builder{
		opts: o, layer: newLayer(o),
		events: spill.NewSorter(o.TempDir, o.Memory),
		inodes: spill.NewSorter(o.TempDir, o.Memory/8),
	}, nil
}

// Add adds an entry. refs are the chunks of a regular file, nil if it has none.
// The error is an *EntryError where the entry is to blame. Some of what is wrong
// with an entry shows only when all are there, in Layer.
func (b *Builder) Add(e *Entry, refs iter.Seq[chunk.Ref]) error {
	list := listBuilder{layer: b.layer}
	if refs != nil {
		for ref := range refs {
			if err := list.add(ref); err != nil {
				return err
			}
		}
	}
	return b.add(e, list.list)
}

// count counts an entry, and its bytes, which have to be stored.
func (b *Builder) count(e *Entry) error {
	b.layer.Entries++
	if b.layer.Entries > b.opts.Limits.Entries {
		return e.refuse("more than %d entries and folders in one layer", b.opts.Limits.Entries)
	}
	return b.spend(e, len(e.name())+len(e.Target))
}

// spend counts bytes that have to be stored.
func (b *Builder) spend(e *Entry, n int) error {
	b.meta += int64(n)
	if b.meta > b.opts.Limits.Meta {
		return e.refuse("names, targets and xattrs of the layer take more than %d bytes", b.opts.Limits.Meta)
	}
	return nil
}

// size counts the bytes of a regular file before they are read.
func (b *Builder) size(e *Entry) error {
	have := b.layer.Bytes
	if e.Size > math.MaxInt64 || int64(e.Size) > b.opts.Limits.Data-have {
		return e.refuse("%d bytes after %d make more than %d in one layer", e.Size, have, b.opts.Limits.Data)
	}
	return nil
}

func (b *Builder) add(e *Entry, chunks chunk.List) error {
	if err := b.count(e); err != nil {
		return err
	}
	if e.Path != "" {
		parts, why := splitPath(e.Path, b.opts.Limits.Depth)
		if why != "" {
			return e.refuse("%s", why)
		}
		if len(parts) != strings.Count(e.Path, "/")+1 { // not all of them mean something
			return e.refuse("path %q, want %q", e.Path, strings.Join(parts, "/"))
		}
	}
	ev := event{seq: uint32(b.layer.Entries)}
	switch e.Kind {
	case KindHardLink:
		ev.op = opLink
		if err := b.query(e, ev.seq); err != nil {
			return err
		}
	case KindWhiteout:
		ev.op = opWhiteout
		if e.Path == "" {
			return e.refuse("whiteout of the root")
		}
	case KindOpaque:
		ev.op = opOpaque
	default:
		if err := b.node(e, &ev, chunks); err != nil {
			return err
		}
	}
	return b.put(e, &ev)
}

func (b *Builder) put(e *Entry, ev *event) error {
	ev.name = packName(ev.op, e.Path, e.name())
	b.key = appendKey(b.key[:0], e.Path)
	b.value = ev.append(b.value[:0])
	return b.events.Add(b.key, b.value)
}

// query asks, in order of arrival, what is at the target of a hard link.
func (b *Builder) query(e *Entry, seq uint32) error {
	parts, why := splitPath(e.Target, b.opts.Limits.Depth)
	target := strings.Join(parts, "/")
	switch {
	case strings.HasPrefix(e.Target, "/"):
		return e.refuse("absolute hard link target %q", e.Target)
	case why != "":
		return e.refuse("hard link target %q: %s", e.Target, why)
	case e.Path == "":
		return e.refuse("hard link for the root, want a folder")
	case target == e.Path:
		return e.refuse("hard link to itself")
	case target == "":
		return e.refuse("hard link to the folder %q", e.Target)
	}
	ev := event{op: opQuery, seq: seq, name: e.name()}
	b.key = appendKey(b.key[:0], target)
	b.value = ev.append(b.value[:0])
	return b.events.Add(b.key, b.value)
}

// node checks an entry that makes an inode.
func (b *Builder) node(e *Entry, ev *event, chunks chunk.List) error {
	ev.op, ev.attr, ev.chunks = opNode, e.Attr, chunks
	switch e.Type() {
	case TypeDir:
		ev.op, ev.attr.Size, ev.chunks = opDir, 0, chunk.List{}
	case TypeFile:
		if err := b.size(e); err != nil {
			return err
		}
		b.layer.Bytes += int64(e.Size)
	case TypeLink:
		ev.target, ev.attr.Size = e.Target, uint64(len(e.Target))
		if len(e.Target) == 0 || len(e.Target) > maxTarget || strings.IndexByte(e.Target, 0) >= 0 {
			return e.refuse("symlink target of %d bytes, want 1 to %d and no NUL", len(e.Target), maxTarget)
		}
	case TypeChar, TypeBlock, TypeFifo, TypeSocket:
		ev.attr.Size = 0
	default:
		return e.refuse("mode %o: unknown type", e.Mode)
	}
	switch {
	case e.Path == "" && ev.op != opDir:
		return e.refuse("type %o for the root, want a folder", e.Type())
	case e.MtimeNsec >= 1e9:
		return e.refuse("%d nanoseconds, want less than a second", e.MtimeNsec)
	case e.Inode != 0 && ev.op == opNode:
		ev.flags |= flagShared
		var key [8]byte
		binary.BigEndian.PutUint64(key[:], e.Inode)
		if err := b.inodes.Add(key[:], binary.BigEndian.AppendUint32(nil, ev.seq)); err != nil {
			return err
		}
	}
	return b.xattrs(e, ev)
}

// xattrs stores the xattrs of an entry, sorted.
func (b *Builder) xattrs(e *Entry, ev *event) error {
	if len(e.Xattrs) == 0 {
		return nil
	}
	xattrs := slices.Clone(e.Xattrs)
	slices.SortStableFunc(xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	size := v6.XattrHeaderSize
	out := b.value[:0]
	for i, x := range xattrs {
		if i+1 < len(xattrs) && xattrs[i+1].Name == x.Name {
			continue // the last one of a name counts
		}
		if len(x.Name) > maxName {
			return e.refuse("xattr name of %d bytes, want at most %d", len(x.Name), maxName)
		}
		_, rest, ok := v6.SplitXattr(x.Name)
		if !ok || strings.IndexByte(x.Name, 0) >= 0 {
			b.layer.DroppedXattrs++
			continue
		}
		if len(x.Value) > v6.MaxXattrValue {
			return e.refuse("xattr %q of %d bytes, want at most %d", x.Name, len(x.Value), v6.MaxXattrValue)
		}
		disk := v6.XattrEntry{NameLen: uint8(len(rest)), ValueSize: uint16(len(x.Value))}
		if size += disk.DiskSize(); size > maxXattrs {
			return e.refuse("xattrs of more than %d bytes", maxXattrs)
		}
		if err := b.spend(e, len(x.Name)+len(x.Value)); err != nil {
			return err
		}
		out = appendText(appendText(out, x.Name), x.Value)
	}
	b.value = out
	if len(out) == 0 {
		return nil
	}
	off, err := b.layer.xattrs.Append(out)
	ev.xattr, ev.xattrLen = off, uint32(len(out))
	return err
}

// Layer ends the adding and decides what is left of the entries. An *EntryError
// names the first entry that an unpacker would have stumbled over.
func (b *Builder) Layer() (*Layer, error) {
	l := b.layer
	if l == nil {
		return nil, errors.New("tree: layer of a builder that is closed")
	}
	if err := b.sameInodes(); err != nil {
		return nil, err
	}
	if err := resolve(l, b.events, b.opts); err != nil {
		return nil, err
	}
	b.layer = nil
	return l, b.Close()
}

// sameInodes makes hard links of the entries that the source has under one number.
func (b *Builder) sameInodes() error {
	sorted, err := b.inodes.Sort()
	if err != nil {
		return err
	}
	last, first := uint64(0), uint32(0)
	for sorted.Next() {
		number, seq := binary.BigEndian.Uint64(sorted.Key()), binary.BigEndian.Uint32(sorted.Value())
		if number != last {
			last, first = number, seq
			continue
		}
		if err := b.layer.alias(seq, first); err != nil {
			return err
		}
	}
	return sorted.Err()
}

// Close drops what the builder has. A layer that it made is not touched.
func (b *Builder) Close() error {
	errs := []error{b.events.Close(), b.inodes.Close()}
	if b.layer != nil {
		errs = append(errs, b.layer.Close())
		b.layer = nil
	}
	return errors.Join(errs...)
}
