package main

import (
	"fmt"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/guest/probe"
	"github.com/rafsd/rafsd/guest/report"
)

// serve answers requests until one ends the machine's life or the host has closed
// the port. Each request has a goroutine of its own: a read that waits for the
// host's file system must not keep the next request from being answered.
func (m *machine) serve() {
	for {
		var r report.Request
		if err := m.port.receive(&r); err != nil {
			m.port.send(report.Event{Type: report.Failed, Error: err.Error()})
			leave(unix.LINUX_REBOOT_CMD_POWER_OFF)
			return
		}
		switch r.Op {
		case report.OpOff:
			m.port.send(report.Event{ID: r.ID, Type: report.Done})
			m.finish(unix.LINUX_REBOOT_CMD_POWER_OFF)
			return
		case report.OpReboot:
			m.port.send(report.Event{ID: r.ID, Type: report.Done})
			m.finish(unix.LINUX_REBOOT_CMD_RESTART)
			return
		case report.OpRun:
			// The overlay is made here, by one goroutine.
			if _, err := m.root.open(); err != nil {
				m.done(r.ID, err)
				continue
			}
		}
		go func() { m.done(r.ID, m.answer(r)) }()
	}
}

func (m *machine) done(id int, err error) {
	e := report.Event{ID: id, Type: report.Done}
	if err != nil {
		e.Error = err.Error()
	}
	m.port.send(e)
}

func (m *machine) answer(r report.Request) error {
	switch r.Op {
	case report.OpTree:
		return probe.Walk(filepath.Join(lowerDir, r.Path), func(e probe.Entry) error {
			m.port.send(report.Event{ID: r.ID, Type: report.Entry, Entry: &e})
			return nil
		})
	case report.OpRead:
		return m.read(r, true)
	case report.OpLoop:
		return m.loop(r)
	case report.OpCancel:
		return m.loops.cancel(r.Target)
	case report.OpRun:
		if r.Command == nil {
			return fmt.Errorf("request without a command")
		}
		return m.run(r.ID, *r.Command)
	case report.OpDrop:
		return dropCaches()
	case report.OpUmount:
		return unix.Unmount(lowerDir, 0)
	case report.OpMount:
		return mountTag(m.tag, lowerDir)
	}
	return fmt.Errorf("unknown request %q", r.Op)
}

// read reads each file once, in the order given.
func (m *machine) read(r report.Request, tell bool) error {
	for _, path := range r.Paths {
		n, sum, err := probe.Hash(filepath.Join(lowerDir, path), r.Direct)
		if err != nil {
			return err
		}
		if tell {
			m.port.send(report.Event{ID: r.ID, Type: report.File, Path: path, Size: n, SHA256: sum})
		}
	}
	return nil
}

// loop reads the files over and over. The first pass reports what it read; later
// ones only that they have read it again.
func (m *machine) loop(r report.Request) error {
	stop := m.loops.add(r.ID)
	for pass := 1; ; pass++ {
		if err := m.read(r, pass == 1); err != nil {
			return err
		}
		m.port.send(report.Event{ID: r.ID, Type: report.Pass, Count: pass})
		select {
		case <-stop:
			return nil
		default:
		}
	}
}

// loops are the loop requests that go on.
type loops struct {
	mu   sync.Mutex
	stop map[int]chan struct{}
}

func (l *loops) add(id int) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stop == nil {
		l.stop = map[int]chan struct{}{}
	}
	l.stop[id] = make(chan struct{})
	return l.stop[id]
}

func (l *loops) cancel(id int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	stop, found := l.stop[id]
	if !found {
		return fmt.Errorf("no loop %d", id)
	}
	delete(l.stop, id)
	close(stop)
	return nil
}
