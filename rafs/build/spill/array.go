package spill

import "fmt"

// Array is an array of records of one size.
type Array struct {
	pages  pages
	record int
	n      int64
}

// NewArray makes an array of records of so many bytes, whose cache takes budget
// bytes. Files lie in dir, or in os.TempDir if that is empty.
func NewArray(dir string, record, budget int) *Array {
	return &Array{pages: newPages(dir, budget), record: record}
}

// Len is the number of records.
func (a *Array) Len() int64 { return a.n }

// Append adds a record at the end.
func (a *Array) Append(b []byte) error { return a.Set(a.n, b) }

// Set writes record i. Where that is beyond the end, the array grows, and the
// records between are zeros.
func (a *Array) Set(i int64, b []byte) error {
	if len(b) != a.record || i < 0 {
		return fmt.Errorf("spill: record %d of %d bytes, want %d", i, len(b), a.record)
	}
	if err := a.pages.writeAt(b, i*int64(a.record)); err != nil {
		return err
	}
	a.n = max(a.n, i+1)
	return nil
}

// Get reads record i into b.
func (a *Array) Get(i int64, b []byte) error {
	if i < 0 || i >= a.n || len(b) != a.record {
		return fmt.Errorf("spill: record %d of %d, %d bytes of %d", i, a.n, len(b), a.record)
	}
	return a.pages.readAt(b, i*int64(a.record))
}

// Close drops all records. It may be called again.
func (a *Array) Close() error {
	a.n = 0
	return a.pages.close()
}
