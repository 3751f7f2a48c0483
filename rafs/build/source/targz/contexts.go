package targz

import (
	"errors"
	"io"

	"github.com/rafsd/rafsd/rafs/blob/codec/zran"
	"github.com/rafsd/rafsd/rafs/build/spill"
	v6 "github.com/rafsd/rafsd/rafs/layout/v6"
)

// logCache is what each of the two logs keeps in memory, in bytes.
const logCache = 64 << 10

// Contexts are the contexts of a layer with their dictionaries, spilled. Those that
// no chunk needs, since others have the same bytes, are left out: they are 32 KiB
// each, and nydusd refuses more contexts than chunks (storage/src/meta/mod.rs).
type Contexts struct {
	records *spill.Log // v6.ZranContext, one behind the other
	dicts   *spill.Log
	count   uint32
	met     uint32 // of the stream so far
	named   uint32 // how many have a chunk
	last    uint32 // the stream's number of the last of these
}

func newContexts(dir string) *Contexts {
	return &Contexts{records: spill.NewLog(dir, logCache), dicts: spill.NewLog(dir, logCache)}
}

// number is the number of the context that the stream has under n, of which a chunk
// is kept. It is called before the next context begins.
func (c *Contexts) number(n uint32) uint32 {
	if c.named == 0 || c.last != n {
		c.named, c.last = c.named+1, n
	}
	return c.named - 1
}

// add is what an Indexer calls.
func (c *Contexts) add(z *zran.Context) error {
	c.met++
	if c.named == 0 || c.last != c.met-1 {
		return nil
	}
	at, err := c.dicts.Append(z.Dict)
	if err != nil {
		return err
	}
	rec := v6.ZranContext{
		InOffset: z.InOffset, OutOffset: z.OutOffset, DictOffset: uint64(at),
		InLen: z.InLen, OutLen: z.OutLen, DictSize: uint32(len(z.Dict)), CtxByte: z.Byte, CtxBits: z.Bits,
	}
	c.count++
	_, err = c.records.Append(rec.Append(nil))
	return err
}

// Count is the number of contexts.
func (c *Contexts) Count() uint32 { return c.count }

// Size is how many bytes WriteTo writes.
func (c *Contexts) Size() uint64 { return uint64(c.records.Len() + c.dicts.Len()) }

// WriteTo writes the contexts and then the dictionaries, as a blob has them behind
// its chunk information. It writes the same each time.
func (c *Contexts) WriteTo(w io.Writer) (n int64, err error) {
	buf := make([]byte, 32<<10)
	for _, log := range [...]*spill.Log{c.records, c.dicts} {
		for off := int64(0); off < log.Len(); {
			part := buf[:min(int64(len(buf)), log.Len()-off)]
			if err := log.Read(part, off); err != nil {
				return n, err
			}
			k, err := w.Write(part)
			n += int64(k)
			if err != nil {
				return n, err
			}
			off += int64(len(part))
		}
	}
	return n, nil
}

// Close drops the contexts. It may be called again.
func (c *Contexts) Close() error { return errors.Join(c.records.Close(), c.dicts.Close()) }
