package fetch

import (
	"container/list"
	"sync"
	"sync/atomic"
)

// recent keeps the chunks that were verified last in memory, where no cache can.
// It stays empty, and costs nothing, as long as the cache works.
type recent struct {
	limit int

	// filled lets readers pass by an empty one without the lock.
	filled atomic.Bool

	mu    sync.Mutex
	bytes int
	order list.List // of *kept, the newest first
	index map[chunkKey]*list.Element
}

type chunkKey struct{ blob, chunk uint32 }

type kept struct {
	key  chunkKey
	page *page
}

// get returns a chunk's page, which the caller drops, or nil.
func (r *recent) get(k chunkKey) *page {
	if !r.filled.Load() {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.index[k]
	if !ok {
		return nil
	}
	r.order.MoveToFront(e)
	p := e.Value.(*kept).page
	p.hold()
	return p
}

// put keeps a copy of a page's bytes: the page itself counts as memory in flight.
func (r *recent) put(k chunkKey, data []byte) {
	if len(data) > r.limit {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.index[k]; ok {
		return
	}
	if r.index == nil {
		r.index = map[chunkKey]*list.Element{}
	}
	for r.bytes+len(data) > r.limit {
		r.evict(r.order.Back())
	}
	r.index[k] = r.order.PushFront(&kept{k, newPage(append([]byte(nil), data...), nil)})
	r.bytes += len(data)
	r.filled.Store(true)
}

func (r *recent) evict(e *list.Element) {
	k := r.order.Remove(e).(*kept)
	delete(r.index, k.key)
	r.bytes -= len(k.page.data)
	k.page.drop()
}
