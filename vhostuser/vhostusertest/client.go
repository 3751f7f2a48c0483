package vhostusertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Client makes synchronous FUSE calls over the rings of a VM, from any number of
// goroutines. It owns the rings until it is closed. An error number in a reply
// comes back as a syscall.Errno.
type Client struct {
	// ZeroUsed tolerates a back-end that reports a used length of 0. Set it
	// before the first call.
	ZeroUsed bool
	// Layout places the data of the requests that are made from now on.
	Layout DataLayout

	lanes []*lane // 0 is hiprio
	next  atomic.Uint32
	wg    sync.WaitGroup
}

// lane is one ring with the goroutine that takes its calls.
type lane struct {
	calls *os.File

	mu     sync.Mutex
	ring   *Ring
	err    error // why nothing will be answered any more
	broken chan struct{}
}

// NewClient takes over the rings of a machine that runs or is about to.
func NewClient(vm *VM) (*Client, error) {
	c := &Client{}
	for _, r := range vm.Rings {
		fd, err := unix.FcntlInt(uintptr(r.call), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("client: %w", err), c.Close())
		}
		l := &lane{ring: r, calls: os.NewFile(uintptr(fd), "call"), broken: make(chan struct{})}
		c.lanes = append(c.lanes, l)
		c.wg.Go(l.serve)
	}
	return c, nil
}

// Mount is NewClient and Init: what the guest does when virtio-fs is mounted.
func Mount(ctx context.Context, vm *VM) (*Client, error) {
	c, err := NewClient(vm)
	if err != nil {
		return nil, err
	}
	if _, err := c.Init(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close gives the rings back. Calls that wait get os.ErrClosed.
func (c *Client) Close() error {
	for _, l := range c.lanes {
		l.mu.Lock()
		l.failLocked(os.ErrClosed)
		l.mu.Unlock()
		_ = l.calls.Close()
	}
	c.wg.Wait()
	return nil
}

// serve is the interrupt handler of a ring.
func (l *lane) serve() {
	var b [8]byte
	for l.reap() {
		if _, err := l.calls.Read(b[:]); err != nil {
			return
		}
	}
}

// reap hands what is finished to those who wait for it, and arms the ring.
func (l *lane) reap() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.err == nil {
		q, err := l.ring.Reap()
		switch {
		case err != nil:
			l.failLocked(err)
		case q != nil:
			q.done <- struct{}{}
		case l.ring.Arm():
			return true
		}
	}
	return false
}

func (l *lane) failLocked(err error) {
	if l.err == nil {
		l.err = err
		close(l.broken)
	}
}

// sizes of the requests that a client makes, by the data they have room for.
var poolData = [...]int{0, PageSize, 128 << 10, 1 << 20}

// take returns a request with room for data bytes.
func (l *lane) takeLocked(data int, layout DataLayout) (*Request, error) {
	for i, q := range l.ring.pool {
		if q.layout == layout && q.room() >= data && q.room() <= max(8*data, PageSize) {
			l.ring.pool = append(l.ring.pool[:i], l.ring.pool[i+1:]...)
			return q, nil
		}
	}
	size := RequestSize{Args: PageSize - sizeInHeader, Reply: 256, Data: data, Layout: layout}
	for _, n := range poolData {
		if n >= data {
			size.Data = n
			break
		}
	}
	return l.ring.NewRequest(size)
}

func (q *Request) room() int {
	n := 0
	for _, p := range q.pages {
		n += len(p.Bytes)
	}
	return n
}

// do runs one request on l: fill writes it, and take, if not nil, is called with
// the reply when it is a success.
func (c *Client) do(ctx context.Context, l *lane, data int, fill func(*Request), take func(*Request, uint32) error) error {
	l.mu.Lock()
	q, err := l.submitLocked(data, c.Layout, fill)
	l.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case <-q.done:
	case <-l.broken:
		return fmt.Errorf("%s %d: %w", opName(q.op), q.unique, l.err)
	case <-ctx.Done(): // the request stays with the back-end
		return fmt.Errorf("%s %d: %w", opName(q.op), q.unique, context.Cause(ctx))
	}
	errno, n, err := q.Check(c.ZeroUsed)
	if err == nil && errno != 0 {
		err = fmt.Errorf("%s of node %d: %w", opName(q.op), le.Uint64(q.in.Bytes[16:]), errno)
	}
	if err == nil && take != nil {
		err = take(q, n)
	}
	l.mu.Lock()
	l.ring.pool = append(l.ring.pool, q)
	l.mu.Unlock()
	return err
}

func (l *lane) submitLocked(data int, layout DataLayout, fill func(*Request)) (*Request, error) {
	if l.err != nil {
		return nil, l.err
	}
	q, err := l.takeLocked(data, layout)
	if err != nil {
		return nil, err
	}
	fill(q)
	if err := l.ring.Submit(q); err != nil {
		l.ring.pool = append(l.ring.pool, q)
		return nil, err
	}
	return q, l.ring.Publish()
}

// lane spreads calls over the request rings, as a guest of many CPUs does.
func (c *Client) lane() *lane {
	n := uint32(len(c.lanes) - 1)
	return c.lanes[1+(c.next.Add(1)-1)%n]
}

// call is do on some request ring.
func (c *Client) call(ctx context.Context, data int, fill func(*Request), take func(*Request, uint32) error) error {
	return c.do(ctx, c.lane(), data, fill, take)
}

// Kick kicks every ring, wanted or not.
func (c *Client) Kick() error {
	for _, l := range c.lanes {
		l.mu.Lock()
		err := l.ring.Kick()
		l.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// InFlight returns how many requests the back-end has not answered.
func (c *Client) InFlight() int {
	n := 0
	for _, l := range c.lanes {
		l.mu.Lock()
		n += l.ring.InFlight()
		l.mu.Unlock()
	}
	return n
}

// isErrno says whether err carries that error number.
func isErrno(err error, e syscall.Errno) bool {
	var got syscall.Errno
	return errors.As(err, &got) && got == e
}
