package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
)

// roundTrip runs one request alone and returns the first word of its reply, which
// is the handle of an OPENDIR. ENOSYS is no error: no handles then.
func (l *load) roundTrip(q *vhostusertest.Request, hist *vhostusertest.Histogram, fill func()) (uint64, error) {
	fill()
	began := time.Now()
	if err := l.vm.Rings[1].RoundTrip(q, vhostusertest.DefaultTimeout); err != nil {
		return 0, err
	}
	hist.Record(time.Since(began))
	errno, _, err := q.Check(l.zeroUsed)
	if err != nil || errno == syscall.ENOSYS {
		return 0, err
	}
	if errno != 0 {
		return 0, errno
	}
	return q.Handle(), nil
}

// compare starts every daemon, checks what it serves and runs the rows.
func compare(ctx context.Context, o *options, img *image, work string, found []server, rep *report) error {
	want, err := readReference(img.tree)
	if err != nil {
		return fmt.Errorf("read the tree: %w", err)
	}
	rep.Entries = len(want)
	var loads []*load
	for _, s := range found {
		dir := filepath.Join(work, s.name)
		d, err := start(ctx, o, s, img, dir, filepath.Join(dir, "cache"))
		if err != nil {
			return err
		}
		defer d.stop()
		began := time.Now()
		entries, err := check(ctx, d.client, want)
		if err != nil {
			return fmt.Errorf("%s serves the tree wrongly: %w", s.name, err)
		}
		fmt.Fprintf(os.Stderr, "%s: %d entries are right (%v)\n", s.name, len(entries), time.Since(began).Round(time.Millisecond))
		rep.server(s.name).Checked = len(entries)
		rep.server(s.name).Restarts = d.restarts
		l, err := newLoad(ctx, o, d, entries)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		loads = append(loads, l)
	}
	if o.mode("rows") {
		if err := runRows(ctx, o, loads, rep); err != nil {
			return err
		}
	}
	for _, l := range loads {
		if err := l.noteMemory(); err != nil {
			return err
		}
		rep.server(l.name).Memory = l.memory
	}
	return nil
}

// runRows measures row by row, in rounds: A B A B ..., each round beginning with
// another daemon.
func runRows(ctx context.Context, o *options, loads []*load, rep *report) error {
	for _, r := range rows {
		if !o.rows.MatchString(r.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s\n", r.name)
		samples := make([][]sample, len(loads))
		for round := range o.rounds {
			for i := range loads {
				if err := ctx.Err(); err != nil {
					return err
				}
				n := (i + round) % len(loads)
				s, err := loads[n].measure(r, o.duration)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", loads[n].name, r.name, err)
				}
				samples[n] = append(samples[n], s)
			}
		}
		for _, l := range loads {
			if err := l.noteMemory(); err != nil {
				return err
			}
		}
		rep.addRow(r, loads, samples)
	}
	return nil
}
