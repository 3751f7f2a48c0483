package spill

// pageSize is what is read and written at once, in bytes.
const pageSize = 4096

// pages is a space of bytes behind a cache of pages. Pages are written when
// others need their place, so what fits into the cache is never written.
type pages struct {
	file   file
	frames []frame
	max    int           // frames
	at     map[int64]int // page to frame
	hand   int           // of the clock that chooses whom to evict
	last   int           // frame of the last access
}

type frame struct {
	page        int64
	used, dirty bool
	data        []byte
}

func newPages(dir string, budget int) pages {
	return pages{file: file{dir: dir}, max: max(budget/pageSize, 1), at: map[int64]int{}}
}

// page returns the bytes of a page, from the cache or the file.
func (p *pages) page(n int64, write bool) ([]byte, error) {
	if p.file.closed {
		return nil, p.file.fail(errClosed)
	}
	i := p.last
	if i >= len(p.frames) || p.frames[i].page != n {
		var ok bool
		if i, ok = p.at[n]; !ok {
			var err error
			if i, err = p.load(n); err != nil {
				return nil, err
			}
		}
		p.last = i
	}
	f := &p.frames[i]
	f.used = true
	f.dirty = f.dirty || write
	return f.data, nil
}

// load brings a page into a frame.
func (p *pages) load(n int64) (int, error) {
	i := len(p.frames)
	if i < p.max {
		p.frames = append(p.frames, frame{page: -1, data: make([]byte, pageSize)})
	} else {
		for i = p.hand; p.frames[i].used; i = (i + 1) % p.max {
			p.frames[i].used = false
		}
		p.hand = (i + 1) % p.max
	}
	f := &p.frames[i]
	if f.dirty {
		if err := p.file.writeAt(f.data, f.page*pageSize); err != nil {
			return 0, err
		}
		f.dirty = false
	}
	delete(p.at, f.page)
	f.page = -1
	if err := p.file.readAt(f.data, n*pageSize); err != nil {
		return 0, err
	}
	f.page = n
	p.at[n] = i
	return i, nil
}

func (p *pages) readAt(b []byte, off int64) error {
	for len(b) > 0 {
		data, err := p.page(off/pageSize, false)
		if err != nil {
			return err
		}
		n := copy(b, data[off%pageSize:])
		b, off = b[n:], off+int64(n)
	}
	return nil
}

func (p *pages) writeAt(b []byte, off int64) error {
	for len(b) > 0 {
		data, err := p.page(off/pageSize, true)
		if err != nil {
			return err
		}
		n := copy(data[off%pageSize:], b)
		b, off = b[n:], off+int64(n)
	}
	return nil
}

func (p *pages) close() error {
	p.frames, p.at = nil, nil
	return p.file.close()
}
