package spill

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Run is a list of records, each a key and a value, in rising order of the keys'
// bytes. It is written once and read any number of times. A key is stored
// without what it shares with the one before it.
type Run struct {
	file   *file
	mine   bool   // the file is this run's alone
	start  int64  // in the file
	n      int64  // bytes
	memory []byte // all of it, if it never became a file
}

// Records takes records in order.
type Records struct {
	run *Run
	buf []byte
	max int
	key []byte // the last one
}

// NewRun starts a run. Up to budget bytes stay in memory. Files lie in dir, or in
// os.TempDir if that is empty.
func NewRun(dir string, budget int) *Records {
	return newRun(&file{dir: dir}, true, 0, budget)
}

func newRun(f *file, mine bool, start int64, budget int) *Records {
	return &Records{run: &Run{file: f, mine: mine, start: start}, max: budget}
}

// Append adds a record, whose key must not be less than the one before it.
func (r *Records) Append(key, value []byte) error {
	if bytes.Compare(key, r.key) < 0 {
		return fmt.Errorf("spill: key %q after %q", key, r.key)
	}
	shared := 0
	for shared < min(len(key), len(r.key)) && key[shared] == r.key[shared] {
		shared++
	}
	r.buf = binary.AppendUvarint(r.buf, uint64(shared))
	r.buf = binary.AppendUvarint(r.buf, uint64(len(key)-shared))
	r.buf = binary.AppendUvarint(r.buf, uint64(len(value)))
	r.buf = append(append(r.buf, key[shared:]...), value...)
	r.key = append(r.key[:shared], key[shared:]...)
	if len(r.buf) >= r.max {
		return r.flush()
	}
	return nil
}

func (r *Records) flush() error {
	if err := r.run.file.writeAt(r.buf, r.run.start+r.run.n); err != nil {
		return err
	}
	r.run.n += int64(len(r.buf))
	r.buf = r.buf[:0]
	return nil
}

// Finish ends the list. Records must not be used afterwards.
func (r *Records) Finish() (*Run, error) {
	if r.run.n == 0 && r.run.mine {
		r.run.memory, r.run.n = bytes.Clone(r.buf), int64(len(r.buf))
	} else if err := r.flush(); err != nil {
		return nil, err
	}
	r.buf, r.key = nil, nil
	return r.run, nil
}

// Close drops a list that was not finished.
func (r *Records) Close() error { return r.run.Close() }

// Close drops the run. It may be called again.
func (r *Run) Close() error {
	r.memory = nil
	if !r.mine {
		return nil
	}
	return r.file.close()
}

// Cursor returns a cursor before the first record, which takes budget bytes and
// those of the longest record.
func (r *Run) Cursor(budget int) *Cursor {
	var src io.Reader = bytes.NewReader(r.memory)
	if r.memory == nil && r.n > 0 {
		if r.file.closed {
			return &Cursor{err: r.file.fail(errClosed)}
		}
		src = io.NewSectionReader(r.file.f, r.start, r.n)
	}
	return &Cursor{r: bufio.NewReaderSize(src, budget), fail: r.file.fail}
}

// Cursor reads records in order.
type Cursor struct {
	r     *bufio.Reader
	key   []byte
	value []byte
	err   error
	fail  func(error) error
	next  func() (key, value []byte, ok bool) // instead of r
}

// Next moves to the next record. It returns false at the end, and after an
// error, which Err tells.
func (c *Cursor) Next() bool {
	if c.err != nil {
		return false
	}
	if c.next != nil {
		var ok bool
		c.key, c.value, ok = c.next()
		return ok
	}
	shared, err := binary.ReadUvarint(c.r)
	if errors.Is(err, io.EOF) {
		return false
	}
	suffix, err2 := binary.ReadUvarint(c.r)
	size, err3 := binary.ReadUvarint(c.r)
	if err := errors.Join(err, err2, err3); err != nil {
		c.err = c.fail(err)
		return false
	}
	c.key = grow(c.key[:shared], int(suffix))
	c.value = grow(c.value[:0], int(size))
	_, err = io.ReadFull(c.r, c.key[shared:])
	if err == nil {
		_, err = io.ReadFull(c.r, c.value)
	}
	if err != nil {
		c.err = c.fail(err)
		return false
	}
	return true
}

// grow makes b longer by n bytes.
func grow(b []byte, n int) []byte {
	if have := cap(b) - len(b); have < n {
		b = append(make([]byte, 0, 2*(len(b)+n)), b...)
	}
	return b[:len(b)+n]
}

// Key is the key of the record, valid until Next.
func (c *Cursor) Key() []byte { return c.key }

// Value is the value of the record, valid until Next.
func (c *Cursor) Value() []byte { return c.value }

// Err is what ended the cursor, nil for the end of the records.
func (c *Cursor) Err() error { return c.err }
