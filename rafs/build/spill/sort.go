package spill

import (
	"bytes"
	"cmp"
	"errors"
	"slices"
)

// Sorter sorts records by the bytes of their keys. Records with equal keys keep
// the order in which they came.
type Sorter struct {
	dir    string
	budget int
	arena  []byte // keys and values, back to back
	items  []item
	file   *file  // of the runs
	runs   []*Run // each sorted
	end    int64  // of the file
}

// item is a record in the arena.
type item struct{ off, key, value uint32 }

const (
	itemSize = 12
	// cursorSize is the buffer of a run that is merged, in bytes.
	cursorSize = 16 << 10
)

// NewSorter makes a sorter that takes budget bytes, or a little more than the
// longest record if that is more. Files lie in dir, or in os.TempDir if that is
// empty.
func NewSorter(dir string, budget int) *Sorter {
	return &Sorter{dir: dir, budget: budget, file: &file{dir: dir}}
}

// Add takes a record. Key and value are copied.
func (s *Sorter) Add(key, value []byte) error {
	need := len(s.arena) + len(key) + len(value) + itemSize*(len(s.items)+1)
	if need > s.budget && len(s.items) > 0 {
		if err := s.spill(); err != nil {
			return err
		}
	}
	if n := len(s.arena) + len(key) + len(value); n > cap(s.arena) {
		// By doubling, but not beyond what the budget will let in.
		grown := max(n, min(2*cap(s.arena), s.budget), 512)
		s.arena = append(make([]byte, 0, grown), s.arena...)
	}
	s.items = append(s.items, item{uint32(len(s.arena)), uint32(len(key)), uint32(len(value))})
	s.arena = append(append(s.arena, key...), value...)
	return nil
}

func (s *Sorter) key(i item) []byte   { return s.arena[i.off:][:i.key] }
func (s *Sorter) value(i item) []byte { return s.arena[i.off+i.key:][:i.value] }

func (s *Sorter) sort() {
	slices.SortFunc(s.items, func(a, b item) int {
		if order := bytes.Compare(s.key(a), s.key(b)); order != 0 {
			return order
		}
		if order := cmp.Compare(a.off, b.off); order != 0 {
			return order
		}
		return cmp.Compare(a.key+a.value, b.key+b.value) // an empty record lies where its successor does
	})
}

// spill writes what is in memory as a run.
func (s *Sorter) spill() error {
	s.sort()
	w := newRun(s.file, false, s.end, min(cursorSize, s.budget))
	for _, i := range s.items {
		if err := w.Append(s.key(i), s.value(i)); err != nil {
			return err
		}
	}
	s.arena, s.items = s.arena[:0], s.items[:0]
	return s.finish(w)
}

func (s *Sorter) finish(w *Records) error {
	run, err := w.Finish()
	if err != nil {
		return err
	}
	s.end += run.n
	s.runs = append(s.runs, run)
	return nil
}

// Sorted is what a Sorter has, in order.
type Sorted = Merged

// Sort ends the adding and returns the records in order. It is called once; what
// it returns is valid until Close.
func (s *Sorter) Sort() (*Sorted, error) {
	if len(s.runs) == 0 {
		s.sort()
		at := 0
		return Merge(&Cursor{next: func() ([]byte, []byte, bool) {
			if at == len(s.items) {
				return nil, nil, false
			}
			i := s.items[at]
			at++
			return s.key(i), s.value(i), true
		}}), nil
	}
	if len(s.items) > 0 {
		if err := s.spill(); err != nil {
			return nil, err
		}
	}
	s.arena, s.items = nil, nil
	for len(s.runs) > s.fanIn() {
		if err := s.pass(); err != nil {
			return nil, err
		}
	}
	return s.merge(s.runs), nil
}

// fanIn is how many runs are merged at once.
func (s *Sorter) fanIn() int { return max(s.budget/cursorSize, 2) }

func (s *Sorter) merge(runs []*Run) *Merged {
	cursors := make([]*Cursor, len(runs))
	for i, r := range runs {
		cursors[i] = r.Cursor(min(cursorSize, max(s.budget/len(runs), 1)))
	}
	return Merge(cursors...)
}

// pass merges neighbouring runs into fewer ones, in another file.
func (s *Sorter) pass() (err error) {
	runs, old := s.runs, s.file
	s.runs, s.file, s.end = nil, &file{dir: s.dir}, 0
	defer func() { err = errors.Join(err, old.close()) }()
	for group := range slices.Chunk(runs, s.fanIn()) {
		m := s.merge(group)
		w := newRun(s.file, false, s.end, cursorSize)
		for m.Next() {
			if err := w.Append(m.Key(), m.Value()); err != nil {
				return err
			}
		}
		if m.Err() != nil {
			return m.Err()
		}
		if err := s.finish(w); err != nil {
			return err
		}
	}
	return nil
}

// Close drops all records. It may be called again.
func (s *Sorter) Close() error {
	s.arena, s.items, s.runs = nil, nil, nil
	return s.file.close()
}
