package tree

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"

	"github.com/rafsd/rafsd/rafs/build/spill"
)

// linker finds the inodes that have several names. Entries are numbered over all
// layers, from 1.
type linker struct {
	aliases *spill.Array  // of a hard link, the entry that it links to, or 0
	held    *spill.Sorter // inodes by entry
	shared  *spill.Log    // nodes that may share their inode: id, entry
	groups  *spill.Sorter // ids by entry
	value   []byte        // reused
}

const sharedSize = 12 // in linker.shared, in bytes

func newLinker(dir string, memory int) *linker {
	return &linker{
		aliases: spill.NewArray(dir, 8, nameCache),
		held:    spill.NewSorter(dir, memory/4),
		shared:  spill.NewLog(dir, logCache),
		groups:  spill.NewSorter(dir, memory/4),
	}
}

func (l *linker) close() error {
	return errors.Join(l.aliases.Close(), l.held.Close(), l.shared.Close(), l.groups.Close())
}

func (l *linker) alias(from, to uint64) error {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], to)
	return l.aliases.Set(int64(from), b[:])
}

// root is what an entry links to.
func (l *linker) root(entry uint64) (uint64, error) {
	if int64(entry) >= l.aliases.Len() {
		return entry, nil
	}
	var b [8]byte
	if err := l.aliases.Get(int64(entry), b[:]); err != nil {
		return 0, err
	}
	if to := binary.LittleEndian.Uint64(b[:]); to != 0 {
		return to, nil
	}
	return entry, nil
}

// load takes the links inside a layer.
func (l *linker) load(layer *Layer, base uint64) error {
	var b [linkSize]byte
	for off := int64(0); off < layer.links.Len(); off += linkSize {
		if err := layer.links.Read(b[:], off); err != nil {
			return err
		}
		from, to := binary.LittleEndian.Uint32(b[:]), binary.LittleEndian.Uint32(b[4:])
		if err := l.alias(base+uint64(from), base+uint64(to)); err != nil {
			return err
		}
	}
	return nil
}

func (l *linker) hold(entry uint64, layer uint32, i *inode) error {
	l.value = i.append(binary.AppendUvarint(l.value[:0], uint64(layer)))
	return l.held.Add(binary.BigEndian.AppendUint64(nil, entry), l.value)
}

func (l *linker) share(id ID, entry uint64) error {
	var b [sharedSize]byte
	binary.LittleEndian.PutUint32(b[:], uint32(id))
	binary.LittleEndian.PutUint64(b[4:], entry)
	_, err := l.shared.Append(b[:])
	return err
}

// finish gives all nodes that share an inode its attributes and number.
func (l *linker) finish(ctx context.Context, t *Tree) error {
	if l.shared.Len() == 0 {
		return nil
	}
	// A link is to what came before it, so one round finds the ends of all chains.
	for entry := range uint64(l.aliases.Len()) {
		to, err := l.root(entry)
		if err != nil {
			return err
		}
		if to == entry {
			continue
		}
		end, err := l.root(to)
		if err == nil && end != to {
			err = l.alias(entry, end)
		}
		if err != nil {
			return err
		}
	}
	var b [sharedSize]byte
	for off := int64(0); off < l.shared.Len(); off += sharedSize {
		if err := l.shared.Read(b[:], off); err != nil {
			return err
		}
		root, err := l.root(binary.LittleEndian.Uint64(b[4:]))
		if err == nil {
			err = l.groups.Add(binary.BigEndian.AppendUint64(nil, root), b[:4])
		}
		if err != nil {
			return err
		}
	}
	return l.join(ctx, t)
}

// join goes through the groups of names and the inodes side by side.
func (l *linker) join(ctx context.Context, t *Tree) error {
	held, err := l.held.Sort()
	if err != nil {
		return err
	}
	groups, err := l.groups.Sort()
	if err != nil {
		return err
	}
	var layer uint32
	var i inode
	var first ID
	last := []byte(nil)
	for groups.Next() {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		id := ID(binary.LittleEndian.Uint32(groups.Value()))
		if !bytes.Equal(groups.Key(), last) {
			last = append(last[:0], groups.Key()...)
			first = id
			found := held.Next()
			for found && bytes.Compare(held.Key(), last) < 0 {
				found = held.Next()
			}
			if !found || !bytes.Equal(held.Key(), last) {
				return errors.Join(held.Err(), errRecord)
			}
			d := decoder{b: held.Value()}
			layer = uint32(d.uint())
			i.decode(&d)
			if d.bad {
				return errRecord
			}
		}
		r, err := t.record(id)
		if err != nil {
			return err
		}
		r.inode = uint32(first)
		if err := t.describe(&r, &i, layer); err != nil {
			return err
		}
		b := r.encode()
		if err := t.nodes.Set(int64(id), b[:]); err != nil {
			return err
		}
	}
	return groups.Err()
}
