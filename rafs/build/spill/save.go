package spill

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// maxSaved bounds what is loaded of one log, array or run, in bytes.
const maxSaved = 1 << 40

// copySize is how much is copied at once, in bytes.
const copySize = 64 << 10

// Save writes all bytes with their number before them, for [Log.Load].
func (l *Log) Save(w io.Writer) error { return save(w, l.n, l.pages.readAt) }

// Load appends what Save wrote.
func (l *Log) Load(r io.Reader) error {
	return load(r, func(b []byte) error {
		_, err := l.Append(b)
		return err
	})
}

// Save writes all records, for [Array.Load].
func (a *Array) Save(w io.Writer) error { return save(w, a.n*int64(a.record), a.pages.readAt) }

// Load appends what Save wrote of an array with records of the same size.
func (a *Array) Load(r io.Reader) error {
	at := a.n * int64(a.record)
	err := load(r, func(b []byte) error {
		if err := a.pages.writeAt(b, at); err != nil {
			return err
		}
		at += int64(len(b))
		return nil
	})
	if err != nil {
		return err
	}
	if at%int64(a.record) != 0 {
		return fmt.Errorf("spill: %d bytes of records of %d", at, a.record)
	}
	a.n = at / int64(a.record)
	return nil
}

// Save writes all records, for LoadRun.
func (r *Run) Save(w io.Writer) error {
	return save(w, r.n, func(b []byte, off int64) error {
		if r.memory != nil || r.n == 0 {
			copy(b, r.memory[off:])
			return nil
		}
		if r.file.closed {
			return r.file.fail(errClosed)
		}
		_, err := r.file.f.ReadAt(b, r.start+off)
		if err != nil {
			return r.file.fail(err)
		}
		return nil
	})
}

// LoadRun reads what Save wrote. The arguments are those of NewRun.
func LoadRun(r io.Reader, dir string, budget int) (*Run, error) {
	w := NewRun(dir, budget)
	err := load(r, func(b []byte) error {
		w.buf = append(w.buf, b...)
		if len(w.buf) >= w.max {
			return w.flush()
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w.Finish()
}

func save(w io.Writer, n int64, readAt func([]byte, int64) error) error {
	var head [8]byte
	binary.LittleEndian.PutUint64(head[:], uint64(n))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	buf := make([]byte, min(n, copySize))
	for off := int64(0); off < n; off += int64(len(buf)) {
		buf = buf[:min(n-off, copySize)]
		if err := readAt(buf, off); err != nil {
			return err
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

func load(r io.Reader, write func([]byte) error) error {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint64(head[:])
	if n > maxSaved {
		return fmt.Errorf("spill: %d bytes, limit %d", n, int64(maxSaved))
	}
	buf := make([]byte, min(n, copySize))
	for n > 0 {
		buf = buf[:min(n, copySize)]
		if _, err := io.ReadFull(r, buf); err != nil {
			return err
		}
		if err := write(buf); err != nil {
			return err
		}
		n -= uint64(len(buf))
	}
	return nil
}
