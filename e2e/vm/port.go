package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/rafsd/rafsd/guest/report"
)

// Record is an event and when it arrived, counted from the start of QEMU.
type Record struct {
	report.Event
	At time.Duration
}

// port is the host's end of the virtio-serial port: a log of all events, which
// grows, and whose readers wait for more.
type port struct {
	finished chan struct{} // closed when nothing reads from the guest any more

	mu      sync.Mutex
	conn    net.Conn
	log     []Record
	lastID  int
	ended   bool
	why     error
	changed chan struct{} // closed and replaced whenever log or ended change
}

func newPort() *port {
	p := &port{changed: make(chan struct{}), finished: make(chan struct{})}
	close(p.finished)
	return p
}

// serve begins to read events.
func (p *port) serve(conn net.Conn, start time.Time) {
	p.mu.Lock()
	p.conn, p.finished = conn, make(chan struct{})
	p.mu.Unlock()
	go func() {
		defer close(p.finished)
		in := bufio.NewScanner(conn)
		in.Buffer(nil, report.MaxLine)
		for in.Scan() {
			p.take(in.Bytes(), time.Since(start))
		}
		if err := in.Err(); err != nil && !errors.Is(err, net.ErrClosed) {
			p.add(Record{Event: report.Event{Type: report.Failed, Error: "port: " + err.Error()}})
			// Nothing more can be understood; the guest must not wait for a reader.
			_, _ = io.Copy(io.Discard, conn)
		}
	}()
}

// take records one line. A guest that was reset may have left half of one.
func (p *port) take(text []byte, at time.Duration) {
	if len(text) == 0 {
		return
	}
	r := Record{At: at}
	if err := json.Unmarshal(text, &r.Event); err != nil {
		r.Event = report.Event{Type: "garbled", Error: err.Error()}
	}
	if r.Type == report.Bye {
		// A guest that has gone already needs no answer.
		_ = p.send(report.Event{Type: report.Bye})
	}
	p.add(r)
}

func (p *port) add(r Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, r)
	close(p.changed)
	p.changed = make(chan struct{})
}

// end tells all readers that there will be no more.
func (p *port) end(why error) {
	<-p.reading()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended, p.why = true, why
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *port) reading() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.finished
}

func (p *port) close() {
	p.mu.Lock()
	conn := p.conn
	p.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
	<-p.reading()
}

func (p *port) send(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.conn.Write(append(text, '\n')); err != nil {
		return fmt.Errorf("port: %w", err)
	}
	return nil
}

func (p *port) last(n int) []Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Record(nil), p.log[max(0, len(p.log)-n):]...)
}

func (p *port) length() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.log)
}

// next returns record i, waiting for it.
func (p *port) next(ctx context.Context, i int) (Record, error) {
	for {
		p.mu.Lock()
		if i < len(p.log) {
			r := p.log[i]
			p.mu.Unlock()
			return r, nil
		}
		ended, why, changed := p.ended, p.why, p.changed
		p.mu.Unlock()
		if ended {
			return Record{}, errors.Join(errors.New("the machine has ended"), why)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Record{}, context.Cause(ctx)
		}
	}
}

func line(e report.Event) string {
	text, err := json.Marshal(e)
	if err != nil {
		return err.Error()
	}
	return string(text)
}
