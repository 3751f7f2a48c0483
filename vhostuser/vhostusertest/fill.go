package vhostusertest

// The fillers below turn a Request into one FUSE request each. The request must
// have been made large enough; none allocates.

// Init fills in an INIT as Linux 6.1 sends it.
func (q *Request) Init() {
	q.begin(OpInit, 0, shape{args: sizeInitIn, reply: sizeInitOut, varies: true})
	a := q.arg()
	clear(a)
	le.PutUint32(a[0:], initMajor)
	le.PutUint32(a[4:], initMinor)
	le.PutUint32(a[8:], initMaxReadahead)
	le.PutUint32(a[12:], initFlags)
	le.PutUint32(a[16:], initFlags2)
}

// Lookup fills in a LOOKUP.
func (q *Request) Lookup(parent uint64, name string) {
	q.begin(OpLookup, parent, shape{args: uint32(len(name) + 1), reply: sizeEntryOut})
	a := q.arg()
	copy(a, name)
	a[len(name)] = 0
}

// Forget fills in a FORGET of n lookups. It belongs on the hiprio ring.
func (q *Request) Forget(node, n uint64) {
	q.begin(OpForget, node, shape{args: sizeForgetIn, noReply: true})
	le.PutUint64(q.arg(), n)
}

// Getattr fills in a GETATTR.
func (q *Request) Getattr(node uint64) {
	q.begin(OpGetattr, node, shape{args: 16, reply: sizeAttrOut})
	clear(q.arg())
}

// Open fills in an OPEN, or an OPENDIR, with flags of open(2).
func (q *Request) Open(op uint32, node uint64, flags uint32) {
	q.begin(op, node, shape{args: 8, reply: sizeOpenOut})
	le.PutUint32(q.arg()[0:], flags)
	le.PutUint32(q.arg()[4:], 0)
}

// Release fills in a RELEASE, or a RELEASEDIR.
func (q *Request) Release(op uint32, node, fh uint64) {
	q.begin(op, node, shape{args: sizeReleaseIn})
	clear(q.arg())
	le.PutUint64(q.arg(), fh)
}

// Read fills in a READ of size bytes, or a READDIR or READDIRPLUS into size bytes.
func (q *Request) Read(op uint32, node, fh, off uint64, size uint32) {
	q.begin(op, node, shape{args: sizeReadIn, data: size})
	a := q.arg()
	clear(a)
	le.PutUint64(a[0:], fh)
	le.PutUint64(a[8:], off)
	le.PutUint32(a[16:], size)
}

// Readlink fills in a READLINK.
func (q *Request) Readlink(node uint64) {
	q.begin(OpReadlink, node, shape{data: PageSize})
}

// Getxattr fills in a GETXATTR, or with an empty name a LISTXATTR, into size
// bytes. A size of 0 asks how many there are.
func (q *Request) Getxattr(node uint64, name string, size uint32) {
	op, n := OpListxattr, uint32(8)
	if name != "" {
		op, n = OpGetxattr, 8+uint32(len(name))+1
	}
	s := shape{args: n, data: size}
	if size == 0 {
		s.reply = sizeXattrOut
	}
	q.begin(op, node, s)
	a := q.arg()
	le.PutUint32(a[0:], size)
	le.PutUint32(a[4:], 0)
	if name != "" {
		copy(a[8:], name)
		a[n-1] = 0
	}
}

// Plain fills in a request that consists of its header, such as STATFS or
// DESTROY, with a fixed reply of the given size in bytes.
func (q *Request) Plain(op uint32, node uint64, reply int) {
	q.begin(op, node, shape{reply: uint32(reply)})
}

// Raw fills in any request: arguments as given, a fixed reply of reply bytes or
// less, data bytes of room after it.
func (q *Request) Raw(op uint32, node uint64, args []byte, reply, data int) {
	q.begin(op, node, shape{args: uint32(len(args)), reply: uint32(reply), data: uint32(data), varies: true})
	copy(q.arg(), args)
}

// Header returns the 40 bytes of the in header, to be spoiled by a test after the
// request was filled in.
func (q *Request) Header() []byte { return q.in.Bytes[:sizeInHeader] }

// Args returns the arguments, to be spoiled by a test after the request was
// filled in.
func (q *Request) Args() []byte { return q.arg() }
