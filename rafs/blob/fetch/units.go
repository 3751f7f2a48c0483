package fetch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec/unit"
)

// units is the chunk information of a blob, as far as it has been loaded.
type units struct {
	task
	loaded atomic.Pointer[table]
	// next is the origin that is asked next; guarded by mu.
	next origin
}

// origin is where chunk information comes from. Each is asked when the one before
// has none, or when what it had led to wrong bytes.
type origin uint8

const (
	localFile origin = iota // Options.MetaDir
	fromBlob
	freshBlob // around anything shared
)

// table is chunk information that was loaded.
type table struct {
	*unit.Table
	from  origin
	at    time.Time
	close func()
}

const (
	// metaRest is how long a failure to load chunk information stands.
	metaRest = time.Second
	// metaAgain is how long the last origin is believed although chunks were wrong
	// by what it had: then it is asked once more.
	metaAgain = 10 * time.Second
)

// table returns the chunk information of a blob and loads it if need be. It waits
// at most until ctx ends.
func (e *Engine) table(ctx context.Context, s *store) (*table, error) {
	u := s.units
	for {
		if t := u.loaded.Load(); t != nil {
			return t, nil
		}
		err := u.do(ctx, func(error) time.Duration { return metaRest }, func() error {
			if u.loaded.Load() != nil {
				return nil
			}
			t, err := e.loadTable(s)
			if err != nil {
				if e.ctx.Err() == nil {
					e.logs.warn(e.opts.Log, "chunk information cannot be loaded", "blob", s.info.ID, "err", err)
				}
				return err
			}
			u.loaded.Store(t)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
}

// loadTable asks one origin after the other.
func (e *Engine) loadTable(s *store) (*table, error) {
	s.units.mu.Lock()
	from := s.units.next
	s.units.mu.Unlock()
	if from == localFile {
		t, err := e.openTable(s.info)
		if err == nil {
			return t, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			e.opts.Log.Warn("chunk information beside the bootstrap is of no use", "blob", s.info.ID, "err", err)
		}
		from = fromBlob
	}
	t, err := e.readTableSafely(s, from == freshBlob)
	if err != nil && isBad(err) && from == fromBlob {
		from = freshBlob
		t, err = e.readTableSafely(s, true)
	}
	if err != nil {
		return nil, fmt.Errorf("chunk information: %w", err)
	}
	t.from, t.at = from, time.Now()
	return t, nil
}

// readTableSafely makes an error of a decoder that panics: others are served by
// this process, too.
func (e *Engine) readTableSafely(s *store, fresh bool) (t *table, err error) {
	defer func() {
		if v := recover(); v != nil {
			t, err = nil, fmt.Errorf("%w: decoder panicked: %v", blob.ErrCorrupt, v)
		}
	}()
	return e.readTable(s, fresh)
}

// openTable opens the file that came with the bootstrap. Nodes name it by the
// blob, converters by the object that it was taken from.
func (e *Engine) openTable(info *blob.Info) (t *table, err error) {
	if e.opts.MetaDir == "" {
		return nil, fs.ErrNotExist
	}
	if t, err = e.openTableOf(info, info.ID); errors.Is(err, fs.ErrNotExist) && info.MetaID != info.ID {
		t, err = e.openTableOf(info, info.MetaID)
	}
	return t, err
}

func (e *Engine) openTableOf(info *blob.Info, id string) (*table, error) {
	if err := blob.CheckID(id); err != nil {
		return nil, err
	}
	// O_NONBLOCK: what is no regular file must not hold us up.
	f, err := os.OpenFile(filepath.Join(e.opts.MetaDir, id+".blob.meta"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", f.Name())
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	t, err := unit.ReadFile(info, f)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &table{Table: t, from: localFile, at: time.Now(), close: func() { _ = f.Close() }}, nil
}

// distrust gives up a table by which chunks were not found to be what the image
// says, and tells whether another may be had.
func (u *units) distrust(t *table) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.loaded.Load() != t {
		return true
	}
	if t.from == freshBlob && time.Since(t.at) < metaAgain {
		return false
	}
	u.next = min(t.from+1, freshBlob)
	u.loaded.Store(nil)
	t.close()
	return true
}

func (u *units) close() {
	if t := u.loaded.Swap(nil); t != nil {
		t.close()
	}
}
