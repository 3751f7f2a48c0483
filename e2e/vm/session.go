package vm

import (
	"context"
	"errors"
	"fmt"

	"github.com/rafsd/rafsd/guest/probe"
	"github.com/rafsd/rafsd/guest/report"
)

// Await returns the first event of the guest's life that match accepts, among those
// from the from-th on, and the number of the one after it. An event that says that
// init cannot go on is an error.
func (v *VM) Await(ctx context.Context, from int, match func(Record) bool) (Record, int, error) {
	for i := from; ; i++ {
		r, err := v.port.next(ctx, i)
		switch {
		case err != nil:
			return r, i, err
		case match(r):
			return r, i + 1, nil
		case r.ID == 0 && r.Type == report.Failed:
			return r, i + 1, fmt.Errorf("guest: %s", r.Error)
		}
	}
}

// AwaitType returns the first event of that type from the from-th on.
func (v *VM) AwaitType(ctx context.Context, from int, kind string) (Record, int, error) {
	r, next, err := v.Await(ctx, from, func(r Record) bool { return r.ID == 0 && r.Type == kind })
	if err != nil {
		err = fmt.Errorf("waiting for %q: %w", kind, err)
	}
	return r, next, err
}

// Request is a request under way.
type Request struct {
	v    *VM
	ID   int
	next int // record to look at
}

// Send sends a request to the guest.
func (v *VM) Send(r report.Request) (*Request, error) {
	p := v.port
	p.mu.Lock()
	p.lastID++
	r.ID = p.lastID
	from := len(p.log)
	p.mu.Unlock()
	if err := p.send(r); err != nil {
		return nil, err
	}
	return &Request{v: v, ID: r.ID, next: from}, nil
}

// ErrDone tells that a request has no more events.
var ErrDone = errors.New("request is done")

// Next returns the request's next event. After the last one it returns ErrDone, or
// the error that the guest met.
func (q *Request) Next(ctx context.Context) (Record, error) {
	for {
		r, err := q.v.port.next(ctx, q.next)
		if err != nil {
			return r, err
		}
		q.next++
		switch {
		case r.ID == 0 && r.Type == report.Boot:
			return r, errors.New("guest was reset before it answered")
		case r.ID != q.ID:
		case r.Type != report.Done:
			return r, nil
		case r.Error != "":
			return r, fmt.Errorf("guest: %s", r.Error)
		default:
			return r, ErrDone
		}
	}
}

// Do sends a request and calls each for all its events.
func (v *VM) Do(ctx context.Context, r report.Request, each func(Record)) error {
	q, err := v.Send(r)
	if err != nil {
		return err
	}
	for {
		e, err := q.Next(ctx)
		if errors.Is(err, ErrDone) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", r.Op, err)
		}
		if each != nil {
			each(e)
		}
	}
}

// Tree lets the guest look at every entry of the mount below path.
func (v *VM) Tree(ctx context.Context, path string) ([]probe.Entry, error) {
	var out []probe.Entry
	err := v.Do(ctx, report.Request{Op: report.OpTree, Path: path}, func(r Record) {
		if r.Type == report.Entry {
			out = append(out, *r.Entry)
		}
	})
	return out, err
}

// Result of a command in the guest.
type Result struct {
	Stdout, Stderr []byte
	Code           int
	Signal         string // name of the signal that ended it
}

// Run runs a command on the overlay.
func (v *VM) Run(ctx context.Context, c report.Command) (Result, error) {
	var out Result
	err := v.Do(ctx, report.Request{Op: report.OpRun, Command: &c}, func(r Record) { out.add(r) })
	return out, err
}

func (o *Result) add(r Record) {
	switch {
	case r.Type == report.Exit:
		o.Code, o.Signal = r.Code, r.Signal
	case r.Type == report.Output && r.Stream == "stdout":
		o.Stdout = append(o.Stdout, r.Data...)
	case r.Type == report.Output:
		o.Stderr = append(o.Stderr, r.Data...)
	}
}

// PowerOff lets the guest power off and waits for the end of the machine.
func (v *VM) PowerOff(ctx context.Context) error {
	if err := v.Do(ctx, report.Request{Op: report.OpOff}, nil); err != nil {
		return err
	}
	return v.Wait(ctx)
}

// Seen returns the number of events so far, from which [VM.Await] can go on.
func (v *VM) Seen() int { return v.port.length() }
