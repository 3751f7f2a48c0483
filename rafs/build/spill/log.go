package spill

import "fmt"

// Log is a row of bytes that only grows. Whoever appends keeps the offset and
// the size.
type Log struct {
	pages pages
	n     int64
}

// NewLog makes a log whose cache takes budget bytes. Files lie in dir, or in
// os.TempDir if that is empty.
func NewLog(dir string, budget int) *Log { return &Log{pages: newPages(dir, budget)} }

// Len is the number of bytes.
func (l *Log) Len() int64 { return l.n }

// Append adds bytes at the end and returns where they start.
func (l *Log) Append(b []byte) (off int64, err error) {
	off = l.n
	if err := l.pages.writeAt(b, off); err != nil {
		return 0, err
	}
	l.n += int64(len(b))
	return off, nil
}

// Write appends, for those who want an io.Writer.
func (l *Log) Write(b []byte) (int, error) {
	if _, err := l.Append(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Read reads len(b) bytes from an offset, all of which must be there.
func (l *Log) Read(b []byte, off int64) error {
	if off < 0 || off > l.n || int64(len(b)) > l.n-off {
		return fmt.Errorf("spill: bytes %d to %d of %d", off, off+int64(len(b)), l.n)
	}
	return l.pages.readAt(b, off)
}

// Close drops all bytes. It may be called again.
func (l *Log) Close() error {
	l.n = 0
	return l.pages.close()
}
