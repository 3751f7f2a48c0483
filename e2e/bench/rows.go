package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
)

type kind int

const (
	getattr kind = iota
	lookup
	read
	walk
)

// row is one line of the table.
type row struct {
	name       string
	unit       string
	kind       kind
	depth      int
	size       uint32 // of a read, in bytes
	sequential bool
	poll       bool // the front-end spins instead of sleeping
}

var rows = []row{
	{name: "GETATTR QD1", unit: "op/s", kind: getattr, depth: 1},
	{name: "GETATTR QD16", unit: "op/s", kind: getattr, depth: 16},
	{name: "LOOKUP QD1", unit: "op/s", kind: lookup, depth: 1},
	{name: "LOOKUP QD16", unit: "op/s", kind: lookup, depth: 16},
	{name: "READ 4 KiB random QD1", unit: "op/s", kind: read, depth: 1, size: 4 << 10},
	{name: "READ 4 KiB random QD1 polled", unit: "op/s", kind: read, depth: 1, size: 4 << 10, poll: true},
	{name: "READ 4 KiB random QD16", unit: "op/s", kind: read, depth: 16, size: 4 << 10},
	{name: "READ 128 KiB random QD4", unit: "GB/s", kind: read, depth: 4, size: 128 << 10},
	{name: "READ 128 KiB sequential QD4", unit: "GB/s", kind: read, depth: 4, size: 128 << 10, sequential: true},
	{name: "READ 1 MiB sequential QD4", unit: "GB/s", kind: read, depth: 4, size: 1 << 20, sequential: true},
	{name: "READDIRPLUS walk", unit: "entries/s", kind: walk, depth: 1},
}

// op is one request of a row.
type op struct {
	node, fh, off uint64
	name          string
}

const (
	openedFiles = 512  // those that rows read: the largest
	opsPerRow   = 8192 // a row begins again after them
)

// load is a daemon ready for rows: no Client, all requests laid out.
type load struct {
	*daemon
	entries      []entry
	small, large []*vhostusertest.Request
	ops          map[string][]op // by row
	at           map[string]int  // where the row goes on
	memory       memoryUse       // the most that was seen
}

// newLoad opens the files that are going to be read, takes the rings from the
// client, and lays out the requests.
func newLoad(ctx context.Context, o *options, d *daemon, entries []entry) (*load, error) {
	l := &load{daemon: d, entries: entries, ops: map[string][]op{}, at: map[string]int{}}
	for _, i := range largest(entries, openedFiles) {
		fh, _, err := d.client.Open(ctx, entries[i].node)
		if err != nil {
			return nil, err
		}
		entries[i].fh, entries[i].open = fh, true
	}
	if err := d.client.Close(); err != nil {
		return nil, err
	}
	for _, s := range []struct {
		to      *[]*vhostusertest.Request
		n, data int
	}{{&l.small, 16, 4 << 10}, {&l.large, 4, 1 << 20}} {
		for i := range s.n {
			size := vhostusertest.RequestSize{Args: 1024, Reply: 256, Data: s.data, Layout: o.layout}
			q, err := d.vm.Rings[1].NewRequest(size)
			if err != nil {
				return nil, err
			}
			q.Tag = i
			*s.to = append(*s.to, q)
		}
	}
	for _, r := range rows {
		if l.ops[r.name] = l.plan(r); len(l.ops[r.name]) == 0 {
			return nil, fmt.Errorf("row %q: the tree has no file for it", r.name)
		}
	}
	return l, nil
}

// plan draws the requests of a row, the same ones for every daemon.
func (l *load) plan(r row) []op {
	rng := rand.New(rand.NewPCG(1, 2))
	var all []op
	for _, e := range l.entries {
		switch {
		case r.kind == getattr:
			all = append(all, op{node: e.node})
		case r.kind == lookup:
			all = append(all, op{node: e.parent, name: e.name})
		case r.kind == walk && e.attr.IsDir():
			all = append(all, op{node: e.node})
		case r.kind == read && e.open:
			for off := uint64(0); off+uint64(r.size) <= e.attr.Size; off += uint64(r.size) {
				all = append(all, op{node: e.node, fh: e.fh, off: off})
			}
		}
	}
	if r.kind == walk || r.sequential || len(all) == 0 {
		return all
	}
	out := make([]op, opsPerRow)
	for i := range out {
		out[i] = all[rng.IntN(len(all))]
	}
	return out
}

// sample is one round of one row of one daemon.
type sample struct {
	value    float64 // in the row's unit
	p50, p99 time.Duration
}

// measure runs one round of a row.
func (l *load) measure(r row, d time.Duration) (sample, error) {
	if r.kind == walk {
		return l.measureWalk(r, d)
	}
	ops, at := l.ops[r.name], l.at[r.name]
	requests := l.small
	if r.size > 4<<10 {
		requests = l.large
	}
	run := vhostusertest.Load{
		Ring: l.vm.Rings[1], Requests: requests[:r.depth], Poll: r.poll, ZeroUsed: l.zeroUsed,
		Fill: func(q *vhostusertest.Request) bool {
			p := &ops[at]
			if at++; at == len(ops) {
				at = 0
			}
			switch r.kind {
			case getattr:
				q.Getattr(p.node)
			case lookup:
				q.Lookup(p.node, p.name)
			case read:
				q.Read(vhostusertest.OpRead, p.node, p.fh, p.off, r.size)
			}
			return true
		},
		Check: func(_ *vhostusertest.Request, data uint32) error {
			if data != r.size {
				return fmt.Errorf("%d bytes came: want %d", data, r.size)
			}
			return nil
		},
	}
	res, err := run.Run(d)
	if err != nil {
		return sample{}, err
	}
	l.at[r.name] = at
	s := sample{value: float64(res.Ops) / res.Elapsed.Seconds(), p50: res.Latency.Quantile(0.5), p99: res.Latency.Quantile(0.99)}
	if r.unit == "GB/s" {
		s.value = float64(res.Bytes) / res.Elapsed.Seconds() / 1e9
	}
	return s, nil
}

// measureWalk reads every directory of the tree, in whole passes.
func (l *load) measureWalk(r row, d time.Duration) (sample, error) {
	q := l.small[0]
	var entries int
	var hist vhostusertest.Histogram
	buf := make([]byte, vhostusertest.PageSize)
	began := time.Now()
	for time.Since(began) < d {
		for _, dir := range l.ops[r.name] {
			n, err := l.readDir(q, dir.node, buf, &hist)
			if err != nil {
				return sample{}, err
			}
			entries += n
		}
	}
	return sample{
		value: float64(entries) / time.Since(began).Seconds(), p50: hist.Quantile(0.5), p99: hist.Quantile(0.99),
	}, nil
}

// readDir reads one directory as Linux does, with a buffer of a page.
func (l *load) readDir(q *vhostusertest.Request, node uint64, buf []byte, hist *vhostusertest.Histogram) (int, error) {
	fh, err := l.roundTrip(q, hist, func() { q.Open(vhostusertest.OpOpendir, node, 0) })
	if err != nil {
		return 0, err
	}
	entries, off := 0, uint64(0)
	for {
		var n int
		if _, err = l.roundTrip(q, hist, func() { q.Read(vhostusertest.OpReaddirplus, node, fh, off, vhostusertest.PageSize) }); err != nil {
			return 0, err
		}
		_, got, _ := q.Check(l.zeroUsed)
		if got == 0 {
			break
		}
		q.CopyData(buf[:got])
		if n, off, err = vhostusertest.LastDirent(buf[:got], true); err != nil {
			return 0, err
		}
		entries += n
	}
	_, err = l.roundTrip(q, hist, func() { q.Release(vhostusertest.OpReleasedir, node, fh) })
	return entries, err
}
