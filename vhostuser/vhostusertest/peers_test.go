//go:build peers

package vhostusertest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
)

// The back-ends of other people are the judges of this front-end: what all of
// them understand is said right. Run by make interop.

// peer starts a back-end that serves dir on sock.
type peer struct {
	name     string
	args     func(sock, dir string) []string
	features uint64 // protocol features that it must take
	// noDestroy: it gives the buffers of a DESTROY back without a reply in them.
	noDestroy bool
}

var peers = []peer{
	{"virtiofsd-c", func(sock, dir string) []string {
		return []string{"--socket-path=" + sock, "-o", "source=" + dir + ",cache=always,xattr,sandbox=chroot", "-f"}
	}, vhostuser.ProtocolMQ | vhostuser.ProtocolReplyAck | vhostuser.ProtocolBackendReq | vhostuser.ProtocolConfigureMemSlots, false},
	{"virtiofsd", func(sock, dir string) []string {
		return []string{"--socket-path=" + sock, "--shared-dir=" + dir, "--cache=always", "--xattr", "--sandbox=none", "--log-level=error"}
	}, vhostuser.ProtocolMQ | vhostuser.ProtocolReplyAck | vhostuser.ProtocolBackendReq | vhostuser.ProtocolResetDevice | vhostuser.ProtocolConfigureMemSlots, true},
}

func TestPeers(t *testing.T) {
	dir := t.TempDir()
	content := makeTree(t, dir)
	for _, p := range peers {
		program := testenv.Peer(t, p.name)
		for _, opts := range []vhostusertest.Options{
			{},
			{Features: vhostuser.FeatureVersion1},
			{Features: vhostuser.FeatureVersion1 | vhostuser.FeatureEventIdx, QueueSize: 1024},
			{Regions: []vhostusertest.Region{{Size: 1 << 20}, {GPA: 1 << 32, Size: 32 << 20}}},
			{Dialect: vhostusertest.CloudHypervisor, QueueSize: 1024},
		} {
			t.Run(fmt.Sprintf("%s/%v/features=%x,regions=%d", p.name, opts.Dialect, opts.Features, len(opts.Regions)), func(t *testing.T) {
				sock := filepath.Join(t.TempDir(), "sock")
				startPeer(t, program, p.args(sock, dir), sock)
				vm, err := vhostusertest.Connect(t.Context(), sock, opts)
				if err != nil {
					t.Fatal(err)
				}
				defer vm.Close()
				if opts.Dialect == vhostusertest.QEMU && vm.ProtocolFeatures != p.features {
					t.Errorf("protocol features = %#x, want %#x", vm.ProtocolFeatures, p.features)
				}
				story(t, vm, content, p.noDestroy)
			})
		}
	}
}

func makeTree(t *testing.T, dir string) []byte {
	t.Helper()
	content := bytes.Repeat([]byte("0123456789abcde\n"), 40_000)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "sub", "file"), content, 0o644))
	must(os.Symlink("sub/file", filepath.Join(dir, "link")))
	must(os.Mkdir(filepath.Join(dir, "many"), 0o755))
	for i := range 300 {
		must(os.WriteFile(filepath.Join(dir, "many", fmt.Sprintf("name-%d", i)), nil, 0o600))
	}
	return content
}

func startPeer(t *testing.T, program string, args []string, sock string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	var log bytes.Buffer
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", program, log.String())
		}
	})
	for range 5000 {
		if _, err := os.Stat(sock); err == nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("%s does not listen", program)
}

func story(t *testing.T, vm *vhostusertest.VM, content []byte, noDestroy bool) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := vhostusertest.Mount(ctx, vm)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	check(t, ctx, c, content)

	// stop and cont: the session lives on.
	if err := vm.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Getattr(ctx, vhostusertest.RootNode); err != nil {
		t.Errorf("after stop and cont: %v", err)
	}

	// Hotplugged memory takes part.
	if vm.ProtocolFeatures&vhostuser.ProtocolConfigureMemSlots != 0 {
		if err := vm.Plug(vhostusertest.Region{GPA: 1 << 33, Size: 32 << 20}); err != nil {
			t.Fatal(err)
		}
		vm.Memory.Prefer(1 << 33)
		c.Layout = vhostusertest.Scattered // nothing pooled has it
		check(t, ctx, c, content)
	}

	// A reboot: INIT anew.
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := vm.Reset(); err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	c, err = vhostusertest.Mount(ctx, vm)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	check(t, ctx, c, content)
	if err := c.Destroy(ctx); err != nil && !(noDestroy && errors.Is(err, vhostusertest.ErrProtocol)) {
		t.Errorf("destroy: %v", err)
	}
}

func check(t *testing.T, ctx context.Context, c *vhostusertest.Client, content []byte) {
	t.Helper()
	seen := map[string]vhostusertest.Entry{}
	if err := c.Walk(ctx, vhostusertest.RootNode, func(path string, e vhostusertest.Entry) error {
		seen[path] = e
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got, want := len(seen), 304; got != want {
		t.Errorf("walk saw %d entries, want %d", got, want)
	}
	e, err := c.Resolve(ctx, "sub/file")
	if err != nil || e.Node != seen["sub/file"].Node || e.Attr.Size != uint64(len(content)) {
		t.Fatalf("resolve = node %d, size %d, %v; walk saw node %d", e.Node, e.Attr.Size, err, seen["sub/file"].Node)
	}
	var b bytes.Buffer
	if err := c.ReadFile(ctx, &b, e.Node, e.Attr.Size); err != nil || !bytes.Equal(b.Bytes(), content) {
		t.Errorf("read %d bytes, %v; equal: %v", b.Len(), err, bytes.Equal(b.Bytes(), content))
	}
	if target, err := c.Readlink(ctx, seen["link"].Node); err != nil || target != "sub/file" {
		t.Errorf("readlink = %q, %v", target, err)
	}
	if _, err := c.Lookup(ctx, vhostusertest.RootNode, "nope"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("lookup of nothing = %v, want ENOENT", err)
	}
	if s, err := c.Statfs(ctx, vhostusertest.RootNode); err != nil || s.NameLen != 255 {
		t.Errorf("statfs = %+v, %v", s, err)
	}
	if names, err := c.Listxattr(ctx, e.Node); err != nil {
		t.Errorf("listxattr = %q, %v", names, err)
	}
	if err := c.Forget(ctx, e.Node, 1); err != nil {
		t.Errorf("forget: %v", err)
	}
	plain, err := c.Readdir(ctx, vhostusertest.RootNode, mustOpendir(t, ctx, c), 0, vhostusertest.PageSize)
	if err != nil || len(plain) < 3 {
		t.Errorf("readdir = %d entries, %v", len(plain), err)
	}
}

func mustOpendir(t *testing.T, ctx context.Context, c *vhostusertest.Client) uint64 {
	t.Helper()
	fh, _, err := c.Opendir(ctx, vhostusertest.RootNode)
	if err != nil {
		t.Fatal(err)
	}
	return fh
}
