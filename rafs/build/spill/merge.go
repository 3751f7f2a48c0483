package spill

import "bytes"

// Merged reads the records of several cursors in order of their keys. Equal keys
// come in the order of the cursors.
type Merged struct {
	cursors []*Cursor
	heap    []int // cursors that stand at a record, the least at 0
	err     error
	started bool
}

// Merge joins cursors, none of which has moved.
func Merge(cursors ...*Cursor) *Merged { return &Merged{cursors: cursors} }

// Next moves to the next record. It returns false at the end, and after an
// error, which Err tells.
func (m *Merged) Next() bool {
	if m.err != nil {
		return false
	}
	if !m.started {
		m.started = true
		for i := range m.cursors {
			if m.advance(i) {
				m.heap = append(m.heap, i)
				m.up(len(m.heap) - 1)
			}
		}
		return m.err == nil && len(m.heap) > 0
	}
	if len(m.heap) == 0 {
		return false
	}
	if !m.advance(m.heap[0]) {
		m.heap[0] = m.heap[len(m.heap)-1]
		m.heap = m.heap[:len(m.heap)-1]
	}
	m.down()
	return m.err == nil && len(m.heap) > 0
}

func (m *Merged) advance(i int) bool {
	if m.cursors[i].Next() {
		return true
	}
	if err := m.cursors[i].Err(); err != nil {
		m.err = err
	}
	return false
}

func (m *Merged) less(i, j int) bool {
	a, b := m.heap[i], m.heap[j]
	order := bytes.Compare(m.cursors[a].Key(), m.cursors[b].Key())
	return order < 0 || order == 0 && a < b
}

func (m *Merged) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !m.less(i, parent) {
			return
		}
		m.heap[i], m.heap[parent] = m.heap[parent], m.heap[i]
		i = parent
	}
}

func (m *Merged) down() {
	for i := 0; ; {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(m.heap); child++ {
			if m.less(child, least) {
				least = child
			}
		}
		if least == i {
			return
		}
		m.heap[i], m.heap[least] = m.heap[least], m.heap[i]
		i = least
	}
}

// Key is the key of the record, valid until Next.
func (m *Merged) Key() []byte { return m.cursors[m.heap[0]].Key() }

// Value is the value of the record, valid until Next.
func (m *Merged) Value() []byte { return m.cursors[m.heap[0]].Value() }

// Source is the number of the cursor that the record comes from.
func (m *Merged) Source() int { return m.heap[0] }

// Err is what ended the reading, nil for the end of the records.
func (m *Merged) Err() error { return m.err }
