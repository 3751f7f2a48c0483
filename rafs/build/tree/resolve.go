package tree

import (
	"bytes"
	"errors"
	"fmt"
	"sort"

	"github.com/rafsd/rafsd/rafs/build/spill"
)

// maxTurns bounds how often the folders above a path may have been replaced by
// files and back, all of them together. What is in memory grows with it.
const maxTurns = 1 << 15

// resolver decides, in one pass over the entries by path and arrival, what an
// unpacker would have made of them by arrival alone.
//
// An entry sees of the folders above it what they were when it came. So a level
// keeps when its path turned from a folder to something else and back; what came
// before the last turn to something else, anywhere above, was removed by it.
type resolver struct {
	layer        *Layer
	limit        int
	left, beside *spill.Records
	levels       []level // above the current path, the root first
	turns        []turn  // of the levels and then of the current path
	own          int     // where those of the current path start
	key          []byte  // of the current path
	at           here
	nodes        int // entries and folders so far
	refused      *EntryError
	refusedSeq   uint32
	value        []byte // reused
}

// level is a path above others.
type level struct {
	key     int    // length of its key, a prefix of the current one
	turns   int    // where its own start
	turned  bool   // it, or one above, was something else than a folder once
	kill    uint32 // when it, or one above, became such for the last time
	emitted bool   // it is in the output as a folder
}

// turn is when a path became another type: a folder, a symlink, or 0 for all
// others. Of entries that change nothing in this only the first is a turn.
type turn struct {
	seq      uint32
	fileType uint32
}

// here is the current path. Events are zero where there is none.
type here struct {
	dir, node event // what is left of it, one of the two
	last      event // the last entry, left or not
	nonDir    uint32
	shared    bool // node has more names
	opaque    bool
	marker    event
	whiteout  event
	held      uint32 // the last event that is stored beside
}

// resolve fills in l.left and l.beside.
func resolve(l *Layer, events *spill.Sorter, o BuilderOptions) (err error) {
	sorted, err := events.Sort()
	if err != nil {
		return err
	}
	r := &resolver{
		layer: l, limit: o.Limits.Entries, nodes: l.Entries,
		left: spill.NewRun(o.TempDir, logCache), beside: spill.NewRun(o.TempDir, logCache/4),
	}
	err = r.pass(sorted)
	if err == nil && r.refused != nil {
		err = r.refused
	}
	if err != nil {
		return errors.Join(err, r.left.Close(), r.beside.Close())
	}
	if l.left, err = r.left.Finish(); err == nil {
		l.beside, err = r.beside.Finish()
	}
	return err
}

func (r *resolver) pass(sorted *spill.Sorted) error {
	var e event
	for sorted.Next() {
		if !bytes.Equal(sorted.Key(), r.key) {
			if err := r.leave(); err != nil {
				return err
			}
			r.enter(sorted.Key())
		}
		if err := e.decode(sorted.Value()); err != nil {
			return err
		}
		if err := r.event(&e); err != nil {
			return err
		}
	}
	if err := sorted.Err(); err != nil {
		return err
	}
	return r.leave()
}

// enter goes to another path. The root was there before.
func (r *resolver) enter(key []byte) {
	for n := len(r.levels) - 1; !below(key, r.key[:r.levels[n].key]); n-- {
		r.turns = r.turns[:r.levels[n].turns]
		r.levels = r.levels[:n]
	}
	// Folders that no entry describes.
	up := r.above()
	for i := up.key + 1; i < len(key); i++ {
		if key[i] == 0 {
			r.levels = append(r.levels, level{key: i, turns: len(r.turns), turned: up.turned, kill: up.kill})
		}
	}
	r.own = len(r.turns)
	r.key = append(r.key[:0], key...)
	r.at = here{}
}

// above is the level of the folder that the current path lies in.
func (r *resolver) above() level {
	if len(r.levels) == 0 {
		return level{}
	}
	return r.levels[len(r.levels)-1]
}

// sight tells what an entry met above it when it came: since is when the last of
// what was there before was removed, file is the level that was no folder, or -1.
func (r *resolver) sight(seq uint32) (since uint32, file int, fileType uint32) {
	if !r.above().turned {
		return 0, -1, 0
	}
	for i := range r.levels {
		end := r.own
		if i+1 < len(r.levels) {
			end = r.levels[i+1].turns
		}
		turns := r.turns[r.levels[i].turns:end]
		n := sort.Search(len(turns), func(j int) bool { return turns[j].seq >= seq })
		if n > 0 && turns[n-1].seq > since && turns[n-1].fileType != TypeDir {
			return since, i, turns[n-1].fileType
		}
		for n--; n >= 0; n-- {
			if turns[n].fileType != TypeDir {
				since = max(since, turns[n].seq)
				break
			}
		}
	}
	return since, -1, 0
}

// refuse notes what is wrong with an entry. The first that came is to blame: an
// unpacker would have gone no further.
func (r *resolver) refuse(seq uint32, name, format string, args ...any) {
	if r.refused == nil || seq < r.refusedSeq {
		r.refused, r.refusedSeq = &EntryError{name, fmt.Sprintf(format, args...)}, seq
	}
}

func (r *resolver) path() string { return pathOf(r.key) }

// event takes one entry of the current path.
func (r *resolver) event(e *event) error {
	since, file, fileType := r.sight(e.seq)
	if file >= 0 {
		r.blocked(e, r.levels[file].key, fileType)
		return nil
	}
	h := &r.at
	alive := e.seq > r.above().kill
	old := h.last
	if old.seq <= since {
		old = event{}
	}
	switch e.op {
	case opQuery:
		return r.query(e, &old)
	case opWhiteout:
		if alive && h.whiteout.seq == 0 {
			h.whiteout = *e
		}
		return nil
	case opOpaque:
		if old.seq > 0 && old.op != opDir {
			r.blocked(e, len(r.key), old.attr.Type())
		} else if alive {
			h.opaque, h.marker = true, *e
		}
		return nil
	case opDir:
		if alive {
			// What was removed here hid a lower folder of this name.
			h.opaque = h.opaque || old.seq > 0 && old.op != opDir
			h.dir, h.node, h.shared = *e, event{}, false
		}
		h.last = *e
		return r.turn(e, TypeDir, since)
	default:
		if alive {
			h.node, h.dir, h.opaque = *e, event{}, false
			h.shared = e.flags&flagShared != 0
		}
		h.last, h.nonDir = *e, e.seq
		if e.flags&flagShared != 0 {
			if err := r.hold(e); err != nil {
				return err
			}
		}
		fileType := uint32(0)
		if e.attr.Type() == TypeLink {
			fileType = TypeLink
		}
		return r.turn(e, fileType, since)
	}
}

// blocked refuses an entry below what is no folder.
func (r *resolver) blocked(e *event, key int, fileType uint32) {
	dir := pathOf(r.key[:key])
	switch {
	case e.op == opQuery:
		r.refuse(e.seq, e.name, "hard link target %q: %q is no folder", r.path(), dir)
	case fileType == TypeLink:
		r.refuse(e.seq, unpackName(e.op, r.path(), e.name), "writes through the symlink %q", dir)
	default:
		r.refuse(e.seq, unpackName(e.op, r.path(), e.name), "%q is no folder", dir)
	}
}

// turn notes that the current path has a type from now on.
func (r *resolver) turn(e *event, fileType, since uint32) error {
	own := r.turns[r.own:]
	if len(own) == 0 && fileType == TypeDir {
		return nil
	}
	if n := len(own); n > 0 && own[n-1].fileType == fileType && own[n-1].seq > since {
		return nil
	}
	if len(r.turns) == maxTurns {
		return &EntryError{unpackName(e.op, r.path(), e.name), fmt.Sprintf("it and the folders above turned into files and back more than %d times", maxTurns)}
	}
	r.turns = append(r.turns, turn{e.seq, fileType})
	return nil
}

// query tells a hard link what was here when it came.
func (r *resolver) query(e, old *event) error {
	switch {
	case old.seq == 0:
		// A lower layer may have it.
		return r.put(r.beside, r.key, &event{op: opQuery, seq: e.seq, name: e.name})
	case old.op == opDir:
		r.refuse(e.seq, e.name, "hard link to the folder %q", r.path())
		return nil
	}
	if old.seq == r.at.node.seq {
		r.at.shared = true
	}
	if err := r.layer.alias(e.seq, old.seq); err != nil {
		return err
	}
	if old.op != opNode {
		return nil
	}
	return r.hold(old)
}

// hold stores an inode for the names that it has elsewhere.
func (r *resolver) hold(e *event) error {
	if r.at.held == e.seq {
		return nil
	}
	r.at.held = e.seq
	return r.put(r.beside, r.key, &event{op: opHeld, seq: e.seq, inode: e.inode})
}

func (r *resolver) put(out *spill.Records, key []byte, e *event) error {
	r.value = e.append(r.value[:0])
	return out.Append(key, r.value)
}

// leave writes what is left of the current path, which becomes a level.
func (r *resolver) leave() error {
	h, up := &r.at, r.above()
	if h.whiteout.seq > 0 {
		if err := r.folders(&h.whiteout); err != nil {
			return err
		}
		if err := r.put(r.left, r.key, &h.whiteout); err != nil {
			return err
		}
	}
	if err := r.emit(h); err != nil {
		return err
	}
	r.levels = append(r.levels, level{
		key: len(r.key), turns: r.own, kill: max(up.kill, h.nonDir),
		turned:  up.turned || len(r.turns) > r.own,
		emitted: h.dir.seq > 0 || h.opaque || len(r.key) == 0,
	})
	return nil
}

func (r *resolver) emit(h *here) error {
	var e event
	switch {
	case h.dir.seq > 0:
		e = h.dir
	case h.node.seq > 0:
		e = h.node
		if h.shared {
			e.flags |= flagShared
		}
	case h.opaque:
		e = event{op: opDir, flags: flagImplicit, seq: h.marker.seq}
		e.name = packName(opDir, r.path(), unpackName(opOpaque, r.path(), h.marker.name))
		if err := r.imply(r.path(), &h.marker); err != nil {
			return err
		}
	default:
		return nil
	}
	if h.opaque {
		e.flags |= flagOpaque
	}
	blame := &e
	if h.dir.seq == 0 && h.opaque {
		blame = &h.marker
	}
	if err := r.folders(blame); err != nil {
		return err
	}
	return r.put(r.left, r.key, &e)
}

// folders writes the folders above the current path that no entry describes, and
// that are needed for e.
func (r *resolver) folders(e *event) error {
	for i := range r.levels {
		l := &r.levels[i]
		if l.emitted {
			continue
		}
		l.emitted = true
		key := r.key[:l.key]
		if err := r.imply(pathOf(key), e); err != nil {
			return err
		}
		d := &event{op: opDir, flags: flagImplicit, seq: e.seq}
		d.name = packName(opDir, pathOf(key), unpackName(e.op, r.path(), e.name))
		if err := r.put(r.left, key, d); err != nil {
			return err
		}
	}
	return nil
}

// imply counts a folder that no entry describes.
func (r *resolver) imply(path string, e *event) error {
	if path != "" {
		r.layer.Implied++
	}
	r.nodes++
	if r.nodes <= r.limit {
		return nil
	}
	return &EntryError{
		unpackName(e.op, r.path(), e.name),
		fmt.Sprintf("more than %d entries and folders in one layer", r.limit),
	}
}
