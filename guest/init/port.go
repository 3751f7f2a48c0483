package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/guest/report"
)

// port is the virtio-serial port to the host.
type port struct {
	lines *bufio.Scanner // read by one goroutine only

	mu  sync.Mutex
	out *bufio.Writer
}

// openPort finds the port by the name that the host gave it. No other process
// announces devices here, so their folder is looked at until the port is in it.
func openPort(name string, wait time.Duration) (*port, error) {
	for deadline := time.Now().Add(wait); ; time.Sleep(time.Millisecond) {
		dev, err := findPort("/sys/class/virtio-ports", name)
		if err == nil {
			// A blocking descriptor kept away from the runtime's poller: the driver
			// wakes pollers for ports that the host has not opened yet.
			fd, err := unix.Open("/dev/"+dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("open /dev/%s: %w", dev, err)
			}
			f := os.NewFile(uintptr(fd), dev)
			p := &port{lines: bufio.NewScanner(f), out: bufio.NewWriterSize(f, 32<<10)}
			p.lines.Buffer(nil, report.MaxLine)
			return p, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("virtio-serial port %q: %w after %v", name, err, wait)
		}
	}
}

func findPort(class, name string) (string, error) {
	list, err := os.ReadDir(class)
	if err != nil {
		return "", err
	}
	for _, e := range list {
		text, err := os.ReadFile(filepath.Join(class, e.Name(), "name"))
		if err == nil && strings.TrimSpace(string(text)) == name {
			return e.Name(), nil
		}
	}
	return "", fmt.Errorf("none of %d ports", len(list))
}

// send writes one event. Entries of a tree come by the thousand and are gathered;
// everything else goes out at once.
func (p *port) send(e report.Event) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err == nil {
		e.Uptime = now.Nano()
	}
	line, err := json.Marshal(e)
	if err == nil && len(line) >= report.MaxLine {
		err = fmt.Errorf("event %s of %d bytes, want less than %d", e.Type, len(line), report.MaxLine)
	}
	if err != nil {
		line, _ = json.Marshal(report.Event{ID: e.ID, Type: report.Failed, Error: err.Error()})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Type == report.Boot {
		// The last life of a guest that was reset may have ended within a line.
		p.out.WriteByte('\n')
	}
	p.out.Write(line)
	p.out.WriteByte('\n')
	if e.Type != report.Entry {
		// A host that is gone is no matter here: it ends the machine.
		p.out.Flush()
	}
}

// receive reads the next line into v.
func (p *port) receive(v any) error {
	for p.lines.Scan() {
		if len(p.lines.Bytes()) == 0 {
			continue
		}
		if err := json.Unmarshal(p.lines.Bytes(), v); err != nil {
			return fmt.Errorf("line from the host: %w", err)
		}
		return nil
	}
	if err := p.lines.Err(); err != nil {
		return fmt.Errorf("port: %w", err)
	}
	return fmt.Errorf("port: the host has closed it")
}

// awaitBye waits for the host's answer to the last event.
func (p *port) awaitBye() {
	var bye report.Event
	for bye.Type != report.Bye {
		if p.receive(&bye) != nil {
			return
		}
	}
}
