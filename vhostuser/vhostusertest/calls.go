package vhostusertest

import (
	"context"
	"fmt"
	"strings"
	"syscall"
)

// Init opens the FUSE session.
func (c *Client) Init(ctx context.Context) (InitReply, error) {
	var r InitReply
	err := c.call(ctx, 0, (*Request).Init, func(q *Request, _ uint32) error {
		r = decodeInit(q.Reply())
		if r.Major != initMajor {
			return fmt.Errorf("%w: INIT answered with version %d.%d", ErrProtocol, r.Major, r.Minor)
		}
		return nil
	})
	return r, err
}

// Destroy closes the FUSE session, as umount does.
func (c *Client) Destroy(ctx context.Context) error {
	return c.call(ctx, 0, func(q *Request) { q.Plain(OpDestroy, 0, 0) }, nil)
}

// Lookup finds name in directory parent. An Entry with a Node of 0 is an absence;
// so is the error ENOENT.
func (c *Client) Lookup(ctx context.Context, parent uint64, name string) (Entry, error) {
	var e Entry
	err := c.call(ctx, 0, func(q *Request) { q.Lookup(parent, name) }, func(q *Request, _ uint32) error {
		e = decodeEntry(q.Reply())
		return nil
	})
	return e, err
}

// Resolve follows a path of names from the root. A symbolic link on the way is not
// followed. An absence is the error ENOENT.
func (c *Client) Resolve(ctx context.Context, path string) (Entry, error) {
	attr, err := c.Getattr(ctx, RootNode)
	if err != nil {
		return Entry{}, err
	}
	e := Entry{Node: RootNode, Attr: attr}
	for name := range strings.SplitSeq(path, "/") {
		if name == "" {
			continue
		}
		if e, err = c.Lookup(ctx, e.Node, name); err != nil {
			return Entry{}, fmt.Errorf("%s: %w", path, err)
		}
		if e.Node == 0 {
			return Entry{}, fmt.Errorf("%s: %w", path, syscall.ENOENT)
		}
	}
	return e, nil
}

// Forget drops n lookups of node, on the hiprio ring, and waits until the
// back-end has given the buffer back.
func (c *Client) Forget(ctx context.Context, node, n uint64) error {
	return c.do(ctx, c.lanes[0], 0, func(q *Request) { q.Forget(node, n) }, nil)
}

// Getattr returns the attributes of node.
func (c *Client) Getattr(ctx context.Context, node uint64) (Attr, error) {
	var a Attr
	err := c.call(ctx, 0, func(q *Request) { q.Getattr(node) }, func(q *Request, _ uint32) error {
		a = decodeAttr(q.Reply()[16:])
		return nil
	})
	return a, err
}

// Open opens a file for reading and returns its handle and the FOPEN flags. A
// back-end that answers ENOSYS needs no handle, which is 0 then, as for Linux.
func (c *Client) Open(ctx context.Context, node uint64) (fh uint64, flags uint32, err error) {
	return c.open(ctx, OpOpen, node, syscall.O_RDONLY)
}

// Opendir is Open for a directory.
func (c *Client) Opendir(ctx context.Context, node uint64) (fh uint64, flags uint32, err error) {
	return c.open(ctx, OpOpendir, node, syscall.O_RDONLY|syscall.O_DIRECTORY)
}

// OpenFlags is Open with flags of open(2).
func (c *Client) OpenFlags(ctx context.Context, node uint64, how uint32) (fh uint64, flags uint32, err error) {
	return c.open(ctx, OpOpen, node, how)
}

func (c *Client) open(ctx context.Context, op uint32, node uint64, how uint32) (fh uint64, flags uint32, err error) {
	err = c.call(ctx, 0, func(q *Request) { q.Open(op, node, how) }, func(q *Request, _ uint32) error {
		fh, flags = le.Uint64(q.Reply()[0:]), le.Uint32(q.Reply()[8:])
		return nil
	})
	if isErrno(err, syscall.ENOSYS) {
		return 0, 0, nil
	}
	return fh, flags, err
}

// Release closes a handle of Open. ENOSYS is no error.
func (c *Client) Release(ctx context.Context, node, fh uint64) error {
	return c.release(ctx, OpRelease, node, fh)
}

// Releasedir closes a handle of Opendir. ENOSYS is no error.
func (c *Client) Releasedir(ctx context.Context, node, fh uint64) error {
	return c.release(ctx, OpReleasedir, node, fh)
}

func (c *Client) release(ctx context.Context, op uint32, node, fh uint64) error {
	err := c.call(ctx, 0, func(q *Request) { q.Release(op, node, fh) }, nil)
	if isErrno(err, syscall.ENOSYS) {
		return nil
	}
	return err
}

// Read reads into p with one request and returns how many bytes came. Fewer than
// len(p) mean the end of the file.
func (c *Client) Read(ctx context.Context, node, fh, off uint64, p []byte) (int, error) {
	n := 0
	err := c.call(ctx, len(p), func(q *Request) { q.Read(OpRead, node, fh, off, uint32(len(p))) },
		func(q *Request, got uint32) error {
			n = q.CopyData(p[:got])
			return nil
		})
	return n, err
}

// Readdir returns what one READDIR into size bytes gives from offset off. No
// entries: the end.
func (c *Client) Readdir(ctx context.Context, node, fh, off uint64, size uint32) ([]Dirent, error) {
	return c.readdir(ctx, OpReaddir, node, fh, off, size)
}

// Readdirplus is Readdir with the nodes and attributes of the entries.
func (c *Client) Readdirplus(ctx context.Context, node, fh, off uint64, size uint32) ([]Dirent, error) {
	return c.readdir(ctx, OpReaddirplus, node, fh, off, size)
}

func (c *Client) readdir(ctx context.Context, op uint32, node, fh, off uint64, size uint32) ([]Dirent, error) {
	var out []Dirent
	err := c.call(ctx, int(size), func(q *Request) { q.Read(op, node, fh, off, size) },
		func(q *Request, got uint32) error {
			b := make([]byte, got)
			q.CopyData(b)
			var err error
			out, err = decodeDirents(b, op == OpReaddirplus)
			return err
		})
	return out, err
}

// Readlink returns the target of a symbolic link.
func (c *Client) Readlink(ctx context.Context, node uint64) (string, error) {
	b, err := c.variable(ctx, PageSize, func(q *Request) { q.Readlink(node) })
	return string(b), err
}

// Getxattr returns the value of an extended attribute, as getfattr asks for it:
// first its size, then the value.
func (c *Client) Getxattr(ctx context.Context, node uint64, name string) ([]byte, error) {
	size, err := c.xattrSize(ctx, node, name)
	if err != nil || size == 0 {
		return nil, err
	}
	return c.variable(ctx, int(size), func(q *Request) { q.Getxattr(node, name, size) })
}

// Listxattr returns the names of the extended attributes.
func (c *Client) Listxattr(ctx context.Context, node uint64) ([]string, error) {
	size, err := c.xattrSize(ctx, node, "")
	if err != nil || size == 0 {
		return nil, err
	}
	b, err := c.variable(ctx, int(size), func(q *Request) { q.Getxattr(node, "", size) })
	if err != nil || len(b) == 0 {
		return nil, err
	}
	if b[len(b)-1] != 0 {
		return nil, fmt.Errorf("%w: LISTXATTR of node %d does not end with NUL", ErrProtocol, node)
	}
	return strings.Split(string(b[:len(b)-1]), "\x00"), nil
}

func (c *Client) xattrSize(ctx context.Context, node uint64, name string) (uint32, error) {
	var size uint32
	err := c.call(ctx, 0, func(q *Request) { q.Getxattr(node, name, 0) }, func(q *Request, _ uint32) error {
		size = le.Uint32(q.Reply())
		if size > 64<<10 { // XATTR_SIZE_MAX, XATTR_LIST_MAX
			return fmt.Errorf("%w: extended attributes of %d bytes", ErrProtocol, size)
		}
		return nil
	})
	return size, err
}

// variable runs a request whose whole reply is data of up to room bytes.
func (c *Client) variable(ctx context.Context, room int, fill func(*Request)) ([]byte, error) {
	var b []byte
	err := c.call(ctx, room, fill, func(q *Request, got uint32) error {
		b = make([]byte, got)
		q.CopyData(b)
		return nil
	})
	return b, err
}

// Statfs returns the figures of the file system.
func (c *Client) Statfs(ctx context.Context, node uint64) (Statfs, error) {
	var s Statfs
	err := c.call(ctx, 0, func(q *Request) { q.Plain(OpStatfs, node, sizeStatfsOut) }, func(q *Request, _ uint32) error {
		s = decodeStatfs(q.Reply())
		return nil
	})
	return s, err
}

// Call runs any request: the arguments as given, room for reply bytes and then
// for data bytes. It returns everything after the out header.
func (c *Client) Call(ctx context.Context, op uint32, node uint64, args []byte, reply, data int) ([]byte, error) {
	var out []byte
	err := c.call(ctx, data, func(q *Request) { q.Raw(op, node, args, reply, data) }, func(q *Request, got uint32) error {
		n := le.Uint32(q.out.Bytes) - sizeOutHeader
		out = append(out, q.Reply()[:n-got]...)
		rest := make([]byte, got)
		q.CopyData(rest)
		out = append(out, rest...)
		return nil
	})
	return out, err
}
