package chunk

import (
	"encoding/binary"
	"iter"
	"sync"

	"github.com/rafsd/rafsd/rafs/build/spill"
)

const (
	recordSize = 72 // of a Record in a Table, in bytes
	// tableCache is what a table keeps in memory, in bytes.
	tableCache = 32 << 10
)

// Table is a list of records, spilled. It is safe for concurrent use.
type Table struct {
	mu    sync.Mutex
	array *spill.Array
}

// NewTable makes a table whose file lies in dir, or in os.TempDir if that is
// empty.
func NewTable(dir string) *Table {
	return &Table{array: spill.NewArray(dir, recordSize, tableCache)}
}

// Len is the number of records.
func (t *Table) Len() uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return uint32(t.array.Len())
}

// Append adds a record.
func (t *Table) Append(r *Record) error {
	b := r.encode()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.array.Append(b[:])
}

// Set replaces record i.
func (t *Table) Set(i uint32, r *Record) error {
	b := r.encode()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.array.Set(int64(i), b[:])
}

// Record returns record i.
func (t *Table) Record(i uint32) (Record, error) {
	var b [recordSize]byte
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.array.Get(int64(i), b[:]); err != nil {
		return Record{}, err
	}
	return decodeRecord(&b), nil
}

// All lists the records by index. An error is the last thing it yields.
func (t *Table) All() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for i := range t.Len() {
			r, err := t.Record(i)
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// Close drops the records. It may be called again.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.array.Close()
}

func (r *Record) encode() (b [recordSize]byte) {
	le := binary.LittleEndian
	copy(b[:], r.Digest[:])
	le.PutUint64(b[32:], r.CompressedOffset)
	le.PutUint64(b[40:], r.UncompressedOffset)
	le.PutUint32(b[48:], r.CompressedSize)
	le.PutUint32(b[52:], r.UncompressedSize)
	le.PutUint32(b[56:], r.Flags)
	le.PutUint32(b[60:], r.CRC32)
	le.PutUint32(b[64:], r.Unit)
	le.PutUint32(b[68:], r.UnitOffset)
	return b
}

func decodeRecord(b *[recordSize]byte) Record {
	le := binary.LittleEndian
	return Record{
		Digest:             [32]byte(b[:32]),
		CompressedOffset:   le.Uint64(b[32:]),
		UncompressedOffset: le.Uint64(b[40:]),
		CompressedSize:     le.Uint32(b[48:]),
		UncompressedSize:   le.Uint32(b[52:]),
		Flags:              le.Uint32(b[56:]),
		CRC32:              le.Uint32(b[60:]),
		Unit:               le.Uint32(b[64:]),
		UnitOffset:         le.Uint32(b[68:]),
	}
}
