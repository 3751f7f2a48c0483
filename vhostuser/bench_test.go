package vhostuser_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
	"github.com/rafsd/rafsd/vhostuser/virtq"
)

// attrs answers every request as a GETATTR, without looking further than at its
// unique number: what is left is the cost of the ring.
type attrs struct{}

func (attrs) Reset() {}

func (attrs) ServeRing(ctx context.Context, r *vhostuser.Ring) error {
	var c virtq.Chain
	for {
		for n := 1; ; n++ {
			ok, err := r.Pop(&c)
			if !ok && err != nil {
				return err
			}
			if !ok {
				break
			}
			r.Complete(&c, answer(&c))
			if n%16 == 0 {
				r.Flush()
			}
		}
		if err := r.WaitKick(ctx); err != nil {
			return err
		}
	}
}

// answer writes struct fuse_out_header and a struct fuse_attr_out of zeroes.
func answer(c *virtq.Chain) uint32 {
	const header, attrOut = 16, 104
	if c.ReadLen < 40 || c.WriteLen < header+attrOut {
		return 0
	}
	unique := c.Readable[0][8:16]
	out := c.Writable[0]
	binary.LittleEndian.PutUint32(out, header+attrOut)
	binary.LittleEndian.PutUint32(out[4:], 0)
	copy(out[8:16], unique)
	return header + attrOut
}

// benchSocket in the environment makes the test binary a server.
const benchSocket = "VHOSTUSER_BENCH_SOCKET"

func TestMain(m *testing.M) {
	path := os.Getenv(benchSocket)
	if path == "" {
		os.Exit(m.Run())
	}
	if err := benchServer(path); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func benchServer(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	cfg := vhostuser.Config{Device: attrs{}}
	if os.Getenv("VHOSTUSER_BENCH_NOPOLL") != "" {
		cfg.PollMax = -1
	}
	srv, err := vhostuser.NewServer(cfg)
	if err != nil {
		return err
	}
	// The parent's end is ours: it holds our standard input open.
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		cancel()
	}()
	return srv.Serve(ctx, l)
}

// benchVM boots a machine on a server in a process of its own, as it is in life.
func benchVM(b *testing.B) *vhostusertest.VM {
	b.Helper()
	path := filepath.Join(b.TempDir(), "sock")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), benchSocket+"="+path)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	for range 500 {
		if _, err := os.Stat(path); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return vhostusertest.MustBoot(b, path, vhostusertest.Options{QueueSize: 1024})
}

func benchmarkGetattr(b *testing.B, depth int, poll bool) {
	vm := benchVM(b)
	load := vhostusertest.Load{Ring: vm.Rings[1], Poll: poll}
	for range depth {
		q, err := vm.Rings[1].NewRequest(vhostusertest.RequestSize{Args: 16, Reply: 104})
		if err != nil {
			b.Fatal(err)
		}
		load.Requests = append(load.Requests, q)
	}
	left := b.N
	load.Fill = func(q *vhostusertest.Request) bool {
		q.Getattr(1)
		left--
		return left >= 0
	}
	b.ReportAllocs()
	b.ResetTimer()
	res, err := load.Run(time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	b.ReportMetric(float64(res.Latency.Quantile(0.5).Nanoseconds()), "p50-ns")
	b.ReportMetric(float64(res.Latency.Quantile(0.99).Nanoseconds()), "p99-ns")
	b.ReportMetric(float64(res.Kicks)/float64(res.Ops), "kicks/op")
	b.ReportMetric(float64(res.Ops)/res.Elapsed.Seconds(), "op/s")
}

func BenchmarkGetattrQD1(b *testing.B)       { benchmarkGetattr(b, 1, false) }
func BenchmarkGetattrQD1Polled(b *testing.B) { benchmarkGetattr(b, 1, true) }
func BenchmarkGetattrQD16(b *testing.B)      { benchmarkGetattr(b, 16, false) }
func BenchmarkGetattrQD16Polled(b *testing.B) {
	benchmarkGetattr(b, 16, true)
}
