package vhostusertest

import (
	"context"
	"net"
	"path/filepath"
)

// TB is the part of testing.TB that the helpers need: a load generator should
// not link package testing.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Cleanup(func())
	Context() context.Context
	TempDir() string
}

// Listen returns a listener on a fresh socket, and its path for Boot.
func Listen(tb TB) (net.Listener, string) {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		tb.Fatalf("listen: %v", err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	return l, path
}

// MustConnect is Connect for a test, which the machine does not outlive.
func MustConnect(tb TB, path string, opts Options) *VM {
	tb.Helper()
	vm, err := Connect(tb.Context(), path, opts)
	if err != nil {
		tb.Fatalf("connect to %s: %v", path, err)
	}
	tb.Cleanup(func() { _ = vm.Close() })
	return vm
}

// MustBoot is Boot for a test, which the machine does not outlive.
func MustBoot(tb TB, path string, opts Options) *VM {
	tb.Helper()
	vm := MustConnect(tb, path, opts)
	if err := vm.Start(); err != nil {
		tb.Fatalf("boot on %s: %v", path, err)
	}
	return vm
}

// MustMount is Mount for a test, which the client does not outlive.
func MustMount(tb TB, vm *VM) *Client {
	tb.Helper()
	c, err := Mount(tb.Context(), vm)
	if err != nil {
		tb.Fatalf("mount: %v", err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}
