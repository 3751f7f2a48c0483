package vhostuser_test

import (
	"context"
	"net"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
)

// poor is a listener that first fails as a system does that lacks something.
type poor struct {
	net.Listener
	errs  []error
	calls atomic.Int64
}

func (l *poor) Accept() (net.Conn, error) {
	if n := int(l.calls.Add(1)); n <= len(l.errs) {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", l.errs[n-1])}
	}
	return l.Listener.Accept()
}

// What the system lacks for a moment does not end the server, and with it a guest.
func TestAcceptGoesOn(t *testing.T) {
	srv, err := vhostuser.NewServer(vhostuser.Config{Device: &echo{}})
	if err != nil {
		t.Fatal(err)
	}
	l, path := vhostusertest.Listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- srv.Serve(ctx, &poor{Listener: l, errs: []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED}})
	}()
	exchange(t, vhostusertest.MustBoot(t, path, vhostusertest.Options{}), 1, "x")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve = %v, want nil", err)
	}
}
