package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// densityReport is many daemons of one kind on one image: means, in bytes.
type densityReport struct {
	Server        string  `json:"server"`
	Daemons       int     `json:"daemons"`
	RSS           uint64  `json:"rss"`
	PSS           uint64  `json:"pss"`
	Anonymous     uint64  `json:"anonymous"`
	Restarts      int     `json:"restarts"`
	ListenMS      float64 `json:"exec_to_socket_ms"`
	ListenWorstMS float64 `json:"exec_to_socket_worst_ms"`
	// IdleCPU is the processor time that all of them use while nobody asks for
	// anything, in milliseconds a second.
	IdleCPU float64 `json:"idle_cpu_ms_per_s"`
}

// densityGuest is the memory of each guest in bytes.
const densityGuest = 16 << 20

// density runs many daemons of each kind that serves the image, with one cache,
// and lets each serve the start of a Python program.
func density(ctx context.Context, o *options, img *image, work string, found []server, rep *report) error {
	files, err := startOfPython(img.tree)
	if err != nil {
		return err
	}
	small := *o
	small.guestMemory = densityGuest
	for _, s := range found {
		if !s.image {
			continue
		}
		fmt.Fprintf(os.Stderr, "%d daemons of %s\n", o.daemons, s.name)
		d, err := crowd(ctx, &small, img, filepath.Join(work, "density-"+s.name), s, files)
		if err != nil {
			return err
		}
		rep.Density = append(rep.Density, *d)
	}
	return nil
}

func crowd(ctx context.Context, o *options, img *image, dir string, s server, files []string) (*densityReport, error) {
	var all []*daemon
	defer func() {
		for _, d := range all {
			d.stop()
		}
	}()
	var listening []float64
	for i := range o.daemons {
		d, err := start(ctx, o, s, img, filepath.Join(dir, strconv.Itoa(i)), filepath.Join(dir, "cache"))
		if err != nil {
			return nil, err
		}
		all = append(all, d)
		listening = append(listening, float64(d.listening)/1e6)
		if err := replay(ctx, d, files); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	r := &densityReport{Server: s.name, Daemons: len(all), ListenMS: median(listening)}
	for _, d := range all {
		r.Restarts += d.restarts
	}
	for _, v := range listening {
		r.ListenWorstMS = max(r.ListenWorstMS, v)
	}
	for _, d := range all {
		m, err := readMemory(d.cmd.Process.Pid)
		if err != nil {
			return nil, err
		}
		r.RSS += m.RSS / uint64(len(all))
		r.PSS += m.PSS / uint64(len(all))
		r.Anonymous += m.Anonymous / uint64(len(all))
	}
	var err error
	r.IdleCPU, err = idle(ctx, all)
	return r, err
}

// idle measures for two seconds, after one in which garbage may be collected.
func idle(ctx context.Context, all []*daemon) (float64, error) {
	used := func() (ticks uint64, err error) {
		for _, d := range all {
			n, err := cpuTicks(d.cmd.Process.Pid)
			if err != nil {
				return 0, err
			}
			ticks += n
		}
		return ticks, nil
	}
	if err := sleep(ctx, time.Second); err != nil {
		return 0, err
	}
	before, err := used()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := sleep(ctx, 2*time.Second); err != nil {
		return 0, err
	}
	after, err := used()
	const tick = 10 // milliseconds: USER_HZ is 100
	return float64(after-before) * tick / time.Since(began).Seconds(), err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cpuTicks is utime and stime of a process (proc_pid_stat(5)).
func cpuTicks(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	user, err1 := strconv.ParseUint(fields[11], 10, 64)
	system, err2 := strconv.ParseUint(fields[12], 10, 64)
	return user + system, errors.Join(err1, err2)
}

// startOfPython lists what a small Python program opens when it starts, roughly:
// the interpreter, its libraries, the standard library's modules.
func startOfPython(tree string) ([]string, error) {
	var out []string
	for _, pattern := range []string{
		"usr/bin/python3.*", "usr/lib/*/ld-linux*", "usr/lib/*/libc.so.*", "usr/lib/*/libm.so.*", "usr/lib/*/libz.so.*",
		"usr/lib/*/libexpat.so.*", "usr/lib/*/libssl.so.*", "usr/lib/*/libcrypto.so.*", "usr/lib/*/libsqlite3.so.*",
		"usr/lib/python3.*/*.py", "usr/lib/python3.*/asyncio/*.py", "usr/lib/python3.*/json/*.py",
		"usr/lib/python3.*/http/*.py", "usr/lib/python3.*/email/*.py", "usr/lib/python3.*/urllib/*.py",
		"usr/lib/python3/dist-packages/requests/*.py", "usr/lib/python3/dist-packages/urllib3/*.py",
	} {
		found, err := filepath.Glob(filepath.Join(tree, pattern))
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			if st, err := os.Lstat(f); err == nil && st.Mode().IsRegular() {
				out = append(out, strings.TrimPrefix(f, tree+"/"))
			}
		}
	}
	if len(out) == 0 { // another tree: whatever is at its top
		return nil, fmt.Errorf("%s has no Python: the density mode needs one", tree)
	}
	return out, nil
}

func replay(ctx context.Context, d *daemon, files []string) error {
	for _, f := range files {
		e, err := d.client.Resolve(ctx, f)
		if err != nil {
			return err
		}
		if err := d.client.ReadFile(ctx, io.Discard, e.Node, e.Attr.Size); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
	}
	return ctx.Err()
}
