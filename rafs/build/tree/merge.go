package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rafsd/rafsd/rafs/build/spill"
)

const (
	nodeCache = 256 << 10 // of Tree.nodes, in bytes
	nameCache = 64 << 10  // of Tree.names, in bytes
	// mergeMemory is what the cursors of all layers take together, in bytes.
	mergeMemory = 1 << 20
)

// Merge applies layers in order, the lowest first, and returns the tree that a
// container sees. It takes the layers over, also when it fails: they must not be
// used afterwards. Files lie in tempDir, or in os.TempDir if that is empty.
func Merge(ctx context.Context, tempDir string, layers ...*Layer) (*Tree, error) {
	t := &Tree{
		nodes:  spill.NewArray(tempDir, nodeRecordSize, nodeCache),
		names:  spill.NewLog(tempDir, nameCache),
		layers: layers,
	}
	m := newMerger(tempDir, t)
	err := m.run(ctx)
	if err = errors.Join(err, m.close()); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// merger applies all layers at once, in one pass over their paths. At each path
// it goes from the lowest layer to the highest. A layer that removes a folder, or
// hides what is in it, does so for everything below: it is in the wipes of that
// folder.
type merger struct {
	tree   *Tree
	base   []uint64 // of each layer, the entries of all lower ones
	levels []mergeLevel
	key    []byte
	at     mergeHere
	links  *linker
	// The refusal that comes first, by layer, and then links before the others.
	refused *EntryError
	order   [3]uint32
}

// mergeLevel is a folder, or was in some layer.
type mergeLevel struct {
	key   int // length of its key, a prefix of the current one
	dir   bool
	id    ID
	wipes []uint32 // layers from 1, rising
}

// mergeHere is the current path after the layers so far.
type mergeHere struct {
	state  state
	layer  uint32 // of inode, from 0
	inode  inode
	global uint64 // number of the entry that is the inode, over all layers
	link   bool   // global is a hard link: the inode is to be found
	shared bool   // the inode has more names
	held   bool   // the inode is known to links

	any   bool     // an entry of a layer is here
	wiped int      // how many of the wipes above have been applied
	wipes []uint32 // of this path
}

// state is what is at a path.
type state uint8

const (
	stateNone state = iota
	stateDir
	stateNode
)

func newMerger(tempDir string, t *Tree) *merger {
	m := &merger{tree: t, base: make([]uint64, len(t.layers)+1)}
	memory := defaultMemory
	for i, l := range t.layers {
		m.base[i+1] = m.base[i] + uint64(l.Entries)
		memory = l.memory
	}
	m.links = newLinker(tempDir, memory)
	return m
}

func (m *merger) close() error { return m.links.close() }

func (m *merger) run(ctx context.Context) error {
	for i, l := range m.tree.layers {
		if err := m.links.load(l, m.base[i]); err != nil {
			return err
		}
	}
	if err := m.pass(ctx); err != nil {
		return err
	}
	if m.refused != nil {
		return fmt.Errorf("layer %d: %w", m.order[0], m.refused)
	}
	for _, l := range m.tree.layers {
		if err := errors.Join(l.left.Close(), l.beside.Close(), l.links.Close()); err != nil {
			return err
		}
	}
	return m.links.finish(ctx, m.tree)
}

func (m *merger) pass(ctx context.Context) error {
	var cursors []*spill.Cursor
	budget := min(max(mergeMemory/(2*len(m.tree.layers)+1), 1<<10), 32<<10)
	for _, l := range m.tree.layers {
		// What is beside asks for the layers below, so it comes first.
		cursors = append(cursors, l.beside.Cursor(budget), l.left.Cursor(budget))
	}
	m.at = mergeHere{state: stateDir, any: true, inode: inode{attr: Attr{Mode: TypeDir | 0o755}}}
	all := spill.Merge(cursors...)
	var e event
	for n := 0; all.Next(); n++ {
		if n%4096 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !bytes.Equal(all.Key(), m.key) {
			if err := m.leave(); err != nil {
				return err
			}
			if err := m.enter(all.Key()); err != nil {
				return err
			}
		}
		if err := e.decode(all.Value()); err != nil {
			return err
		}
		if err := m.event(uint32(all.Source()/2), &e); err != nil {
			return err
		}
	}
	if err := all.Err(); err != nil {
		return err
	}
	if err := m.leave(); err != nil {
		return err
	}
	return m.popTo(0)
}

// enter goes to another path. The root was there before.
func (m *merger) enter(key []byte) error {
	n := len(m.levels)
	for !below(key, m.key[:m.levels[n-1].key]) {
		n--
	}
	if err := m.popTo(n); err != nil {
		return err
	}
	m.key = append(m.key[:0], key...)
	m.at = mergeHere{}
	return nil
}

// popTo leaves all levels but n and notes where their nodes end.
func (m *merger) popTo(n int) error {
	for i := len(m.levels) - 1; i >= n; i-- {
		if !m.levels[i].dir {
			continue
		}
		id := m.levels[i].id
		r, err := m.tree.record(id)
		if err != nil {
			return err
		}
		r.end = uint32(m.tree.n)
		b := r.encode()
		if err := m.tree.nodes.Set(int64(id), b[:]); err != nil {
			return err
		}
	}
	m.levels = m.levels[:n]
	return nil
}

// above are the wipes of the folder that the current path lies in.
func (m *merger) above() []uint32 {
	if len(m.levels) == 0 {
		return nil
	}
	return m.levels[len(m.levels)-1].wipes
}

// wipe applies what layers up to layer, from 1, have removed above.
func (m *merger) wipe(layer uint32) {
	h, wipes := &m.at, m.above()
	for h.wiped < len(wipes) && wipes[h.wiped] <= layer {
		h.state = stateNone
		h.wiped++
	}
}

// hides notes that a layer, from 1, hides everything that is below the path.
func (m *merger) hides(layer uint32) {
	if n := len(m.at.wipes); n == 0 || m.at.wipes[n-1] != layer {
		m.at.wipes = append(m.at.wipes, layer)
	}
}

func (m *merger) event(layer uint32, e *event) error {
	h := &m.at
	global := m.base[layer] + uint64(e.seq)
	switch e.op {
	case opHeld:
		return m.links.hold(global, layer, &e.inode)
	case opQuery:
		m.wipe(layer) // those of the lower ones
		return m.query(layer, global, e)
	}
	m.wipe(layer + 1)
	h.any = true
	switch e.op {
	case opWhiteout:
		h.state = stateNone
		m.hides(layer + 1)
	case opDir:
		m.folder(layer, e)
	default:
		*h = mergeHere{
			state: stateNode, layer: layer, inode: e.inode, global: global, link: e.op == opLink,
			shared: e.op == opLink || e.flags&flagShared != 0,
			any:    true, wiped: h.wiped, wipes: h.wipes,
		}
		m.hides(layer + 1)
	}
	return nil
}

// folder puts a folder of a layer onto what is below.
func (m *merger) folder(layer uint32, e *event) {
	h := &m.at
	implicit := e.flags&flagImplicit != 0
	switch {
	case h.state == stateNode && implicit:
		// An unpacker would follow a symlink here.
		path, why := pathOf(m.key), "%q is no folder in a lower layer"
		if !h.link && h.inode.attr.Type() == TypeLink {
			why = "writes through the symlink %q of a lower layer"
		}
		m.refuse(layer, 1, e.seq, &EntryError{unpackName(opDir, path, e.name), fmt.Sprintf(why, path)})
		return
	case h.state != stateDir:
		if h.state == stateNode {
			m.hides(layer + 1)
		}
		h.state, h.layer, h.link, h.shared = stateDir, layer, false, false
		h.inode = inode{attr: Attr{Mode: TypeDir | 0o755}}
	}
	if !implicit {
		h.inode, h.layer = e.inode, layer
	}
	if e.flags&flagOpaque != 0 {
		m.hides(layer + 1)
	}
}

// query tells a hard link what the layers below have here.
func (m *merger) query(layer uint32, global uint64, e *event) error {
	h := &m.at
	switch h.state {
	case stateNone:
		m.refuse(layer, 0, e.seq, &EntryError{e.name, fmt.Sprintf("hard link target %q does not exist", pathOf(m.key))})
		return nil
	case stateDir:
		m.refuse(layer, 0, e.seq, &EntryError{e.name, fmt.Sprintf("hard link to the folder %q", pathOf(m.key))})
		return nil
	}
	h.shared = true
	if !h.link && !h.held {
		h.held = true
		if err := m.links.hold(h.global, h.layer, &h.inode); err != nil {
			return err
		}
	}
	return m.links.alias(global, h.global)
}

func (m *merger) refuse(layer, phase, seq uint32, e *EntryError) {
	order := [3]uint32{layer + 1, phase, seq}
	if m.refused == nil || slices.Compare(order[:], m.order[:]) < 0 {
		m.refused, m.order = e, order
	}
}

// leave writes the node of the current path, which becomes a level.
func (m *merger) leave() error {
	h := &m.at
	if !h.any {
		return nil
	}
	m.wipe(uint32(len(m.tree.layers)))
	l := mergeLevel{key: len(m.key), wipes: m.above()}
	if len(h.wipes) > 0 {
		l.wipes = slices.Concat(l.wipes, h.wipes)
		slices.Sort(l.wipes)
		l.wipes = slices.Compact(l.wipes)
	}
	if h.state != stateNone && m.refused == nil {
		l.dir, l.id = h.state == stateDir, ID(m.tree.n)
		if err := m.node(l.id); err != nil {
			return err
		}
	}
	m.levels = append(m.levels, l)
	return nil
}

func (m *merger) node(id ID) error {
	h := &m.at
	r := nodeRecord{end: uint32(id) + 1, inode: uint32(id), layer: h.layer}
	if id != Root {
		up := m.levels[len(m.levels)-1]
		if !up.dir || up.key != parentLen(m.key, false) {
			return fmt.Errorf("tree: %q lies in no folder", pathOf(m.key))
		}
		r.parent = uint32(up.id)
	}
	var err error
	base := baseOf(m.key)
	if r.name, err = m.tree.names.Append(base); err != nil {
		return err
	}
	r.nameLen = uint16(len(base))
	if err := m.tree.describe(&r, &h.inode, h.layer); err != nil {
		return err
	}
	m.tree.n++
	b := r.encode()
	if err := m.tree.nodes.Append(b[:]); err != nil || !h.shared {
		return err
	}
	return m.links.share(id, h.global)
}

// describe fills an inode of a layer into a record.
func (t *Tree) describe(r *nodeRecord, i *inode, layer uint32) (err error) {
	r.attr, r.layer, r.xattr, r.xattrLen = i.attr, layer, i.xattr, i.xattrLen
	r.chunks = i.chunks
	r.chunks.Log = layer
	r.targetLen = uint16(len(i.target))
	r.target, err = t.names.Append([]byte(i.target))
	return err
}
