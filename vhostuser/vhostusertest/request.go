package vhostusertest

import (
	"fmt"
	"syscall"
	"time"
)

// DataLayout is how a guest places the pages that it wants filled.
type DataLayout int

const (
	// Pages is one descriptor for each page, the pages one after the other in
	// guest memory: what a freshly booted Linux mostly has.
	Pages DataLayout = iota
	// Scattered is one descriptor for each page, no two of them neighbours.
	Scattered
	// Folio is one descriptor for all the data, as a large folio has it.
	Folio
)

// RequestSize says how large a Request may become, in bytes.
type RequestSize struct {
	Args   int // after the in header
	Reply  int // fixed part of the reply, after the out header
	Data   int // pages, rounded up to whole ones
	Layout DataLayout
}

// Request is one FUSE request in guest memory, in the shape that Linux gives it:
// in header, arguments, out header, fixed reply, data. It is laid out once and
// used any number of times; filling it allocates nothing.
type Request struct {
	// Tag and Started are the user's.
	Tag     int
	Started time.Time

	ring   *Ring
	in     Buffer // header, then arguments
	out    Buffer // header, then fixed reply
	pages  []Buffer
	table  Buffer
	layout DataLayout

	op      uint32
	unique  uint64
	args    uint32
	reply   uint32 // want of the fixed reply
	varies  bool   // the fixed reply may be shorter
	data    uint32
	noReply bool

	descs []Desc
	chain []uint16
	used  uint32
	done  chan struct{}
}

// NewRequest lays out a request for ring r.
func (r *Ring) NewRequest(size RequestSize) (*Request, error) {
	q := &Request{ring: r, layout: size.Layout, done: make(chan struct{}, 1)}
	var err error
	if q.in, err = r.memory.Alloc(sizeInHeader+size.Args, 64); err != nil {
		return nil, err
	}
	if q.out, err = r.memory.Alloc(sizeOutHeader+size.Reply, 64); err != nil {
		return nil, err
	}
	pages := (size.Data + PageSize - 1) / PageSize
	if err := q.allocPages(pages); err != nil {
		return nil, err
	}
	most := 4 + len(q.pages)
	if q.table, err = r.memory.Alloc(most*descSize, 64); err != nil {
		return nil, err
	}
	q.descs = make([]Desc, 0, most)
	q.chain = make([]uint16, 0, most)
	return q, nil
}

func (q *Request) allocPages(n int) error {
	m := q.ring.memory
	switch {
	case n == 0:
		return nil
	case q.layout == Folio:
		b, err := m.Alloc(n*PageSize, PageSize)
		q.pages = []Buffer{b}
		return err
	}
	stride := 1
	if q.layout == Scattered {
		stride = 2
	}
	b, err := m.Alloc(n*stride*PageSize, PageSize)
	if err != nil {
		return err
	}
	for i := range n {
		at := i * stride * PageSize
		q.pages = append(q.pages, Buffer{GPA: b.GPA + uint64(at), Bytes: b.Bytes[at : at+PageSize : at+PageSize]})
	}
	return nil
}

// shape is what a filled request needs of its buffers.
type shape struct {
	args, reply, data uint32
	varies            bool
	noReply           bool
}

// begin writes the in header and makes the chain fit s.
func (q *Request) begin(op uint32, node uint64, s shape) {
	q.ring.unique += 2 // Linux: even numbers, odd ones are interrupts
	q.op, q.unique = op, q.ring.unique
	h := q.in.Bytes[:sizeInHeader]
	le.PutUint32(h[0:], sizeInHeader+s.args)
	le.PutUint32(h[4:], op)
	le.PutUint64(h[8:], q.unique)
	le.PutUint64(h[16:], node)
	clear(h[24:]) // uid, gid, pid of root
	if len(q.descs) == 0 || q.args != s.args || q.reply != s.reply || q.data != s.data || q.noReply != s.noReply {
		q.args, q.reply, q.data, q.noReply = s.args, s.reply, s.data, s.noReply
		q.describe()
	}
	q.varies = s.varies
	q.used = 0
	if !s.noReply {
		clear(q.out.Bytes[:sizeOutHeader])
	}
}

// arg returns the bytes of the arguments.
func (q *Request) arg() []byte { return q.in.Bytes[sizeInHeader : sizeInHeader+q.args] }

// describe writes the chain of a request whose sizes changed.
func (q *Request) describe() {
	q.descs = append(q.descs[:0], Desc{Addr: q.in.GPA, Len: sizeInHeader})
	if q.args > 0 {
		q.descs = append(q.descs, Desc{Addr: q.in.GPA + sizeInHeader, Len: q.args})
	}
	if !q.noReply {
		q.descs = append(q.descs, Desc{Addr: q.out.GPA, Len: sizeOutHeader, Flags: DescWrite})
	}
	if q.reply > 0 {
		q.descs = append(q.descs, Desc{Addr: q.out.GPA + sizeOutHeader, Len: q.reply, Flags: DescWrite})
	}
	rest := q.data
	for i := 0; rest > 0; i++ {
		n := min(rest, uint32(len(q.pages[i].Bytes)))
		q.descs = append(q.descs, Desc{Addr: q.pages[i].GPA, Len: n, Flags: DescWrite})
		rest -= n
	}
	Linked(q.descs...)
	for i, d := range q.descs {
		d.put(q.table.Bytes[i*descSize:])
	}
}

// Descs returns the chain as the driver would write it, to be spoiled by a test.
func (q *Request) Descs() []Desc { return append([]Desc(nil), q.descs...) }

// Used returns what the back-end reported as written, in bytes.
func (q *Request) Used() uint32 { return q.used }

// Unique returns the request's number.
func (q *Request) Unique() uint64 { return q.unique }

// Check judges the reply as Linux 7.1 and later do and returns the error number
// that it carries, 0 for success, and the length of the data. With zeroUsed, a
// used length of 0 is taken for a correct one: nydusd always reports that.
func (q *Request) Check(zeroUsed bool) (syscall.Errno, uint32, error) {
	if q.noReply {
		if q.used != 0 {
			return 0, 0, q.broken("used length is %d: want 0", q.used)
		}
		return 0, 0, nil
	}
	n := le.Uint32(q.out.Bytes[0:])
	code := int32(le.Uint32(q.out.Bytes[4:]))
	unique := le.Uint64(q.out.Bytes[8:])
	room := sizeOutHeader + q.reply + q.data
	switch {
	case q.used != n && !(zeroUsed && q.used == 0):
		return 0, 0, q.broken("used length is %d, the header says %d", q.used, n)
	case n < sizeOutHeader || n > room:
		return 0, 0, q.broken("length is %d: want %d to %d", n, sizeOutHeader, room)
	case unique != q.unique:
		return 0, 0, q.broken("unique is %d: want %d", unique, q.unique)
	case code > 0 || code <= -512:
		return 0, 0, q.broken("error is %d: want -511 to 0", code)
	case code != 0 && n != sizeOutHeader:
		return 0, 0, q.broken("error %d with a length of %d: want %d", code, n, sizeOutHeader)
	case code != 0:
		return syscall.Errno(-code), 0, nil
	case !q.varies && n < sizeOutHeader+q.reply:
		return 0, 0, q.broken("length is %d: want at least %d", n, sizeOutHeader+q.reply)
	}
	return 0, n - min(n, sizeOutHeader+q.reply), nil
}

func (q *Request) broken(format string, args ...any) error {
	return fmt.Errorf("%w: reply to %s %d: %s", ErrProtocol, opName(q.op), q.unique, fmt.Sprintf(format, args...))
}

// Reply returns the fixed part of the reply.
func (q *Request) Reply() []byte { return q.out.Bytes[sizeOutHeader : sizeOutHeader+q.reply] }

// CopyData copies the first bytes of the data into dst and returns how many.
func (q *Request) CopyData(dst []byte) int {
	n := 0
	for _, p := range q.pages {
		if n == len(dst) {
			break
		}
		n += copy(dst[n:], p.Bytes)
	}
	return n
}

// EachPage calls f with the pieces of the first n bytes of the data, in order.
func (q *Request) EachPage(n uint32, f func([]byte)) {
	for _, p := range q.pages {
		if n == 0 {
			return
		}
		k := min(n, uint32(len(p.Bytes)))
		f(p.Bytes[:k])
		n -= k
	}
}

// Handle returns the handle in the reply to an OPEN or OPENDIR.
func (q *Request) Handle() uint64 {
	if q.reply < 8 {
		return 0
	}
	return le.Uint64(q.Reply())
}
