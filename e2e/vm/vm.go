// Package vm runs a virtual machine of QEMU whose root file system is to come from
// a vhost-user-fs back-end, with the guest init of this repository inside. Results
// come back as events over a virtio-serial port, never from the console.
//
// A machine is bounded: it is killed when its context ends, when its time is up, and
// when the process that started it dies. It never gets a network or a disk.
package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/rafsd/rafsd/e2e/process"
	"github.com/rafsd/rafsd/guest/report"
)

// FS is a vhost-user-fs device.
type FS struct {
	Socket    string // of the back-end, which must be listening
	Tag       string
	Queues    int // request queues; 0 is 1
	QueueSize int // 0 is 1024, which lets a Linux guest read 1 MiB at once
}

// Options of [Start]. The zero value of each field but Boot is a default.
type Options struct {
	Boot   Files
	Config report.Config
	FS     []FS
	Memory int           // MiB, default 512
	CPUs   int           // default 1
	Reboot bool          // a reset of the guest boots it again; otherwise it ends the machine
	Life   time.Duration // the machine is killed after that, default 2 minutes
	Accel  string        // "tcg" or "kvm"; default is what [Accel] finds
}

// VM is a running machine. Its methods may be called from several goroutines.
type VM struct {
	dir     string
	cmd     *exec.Cmd
	cancel  context.CancelFunc
	started time.Time
	config  []byte // first line for the guest, when it is too long for the command line
	port    *port
	qmp     *qmp
	output  *os.File // what QEMU itself writes

	done chan struct{} // closed when the process has been waited for
	err  error         // set before done is closed

	stop sync.Once
}

// Start starts a machine and returns as soon as QEMU has connected to the port. The
// guest has not booted then: see [VM.Await].
func Start(ctx context.Context, o Options) (*VM, error) {
	o = o.withDefaults(ctx)
	dir, err := os.MkdirTemp("", "rafsd-vm-")
	if err != nil {
		return nil, err
	}
	v := &VM{dir: dir, port: newPort(), done: make(chan struct{})}
	if err := v.start(ctx, o); err != nil {
		err = fmt.Errorf("%w\n%s", err, v.Describe())
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

func (o Options) withDefaults(ctx context.Context) Options {
	if o.Memory == 0 {
		o.Memory = 512
	}
	if o.CPUs == 0 {
		o.CPUs = 1
	}
	if o.Life == 0 {
		o.Life = 2 * time.Minute
	}
	if o.Accel == "" {
		o.Accel = Accel(ctx, o.Boot)
	}
	return o
}

func (v *VM) start(ctx context.Context, o Options) error {
	parameter, line, err := o.Config.Parameter()
	if err != nil {
		return err
	}
	v.config = line
	// QEMU connects to these, so that nobody has to wait for a socket to appear.
	portEnd, err := net.Listen("unix", v.path("port"))
	if err != nil {
		return err
	}
	defer portEnd.Close()
	qmpEnd, err := net.Listen("unix", v.path("qmp"))
	if err != nil {
		return err
	}
	defer qmpEnd.Close()
	if v.output, err = os.Create(v.path("qemu.log")); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	v.cancel = func() { cancel(context.Canceled) }
	v.cmd = exec.CommandContext(ctx, "qemu-system-x86_64", arguments(o, v.dir, parameter)...)
	v.cmd.Stdout, v.cmd.Stderr = v.output, v.output
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	v.started = time.Now()
	if err := v.cmd.Start(); err != nil {
		close(v.done)
		return err
	}
	go v.wait(ctx)
	// The machine lives from when QEMU answers: a busy host may take its time.
	end := time.AfterFunc(connectTimeout, func() { cancel(lifeError(connectTimeout)) })
	if err := v.connect(portEnd, qmpEnd); err != nil {
		return err
	}
	end.Stop()
	time.AfterFunc(o.Life, func() { cancel(lifeError(o.Life)) })
	return nil
}

// connectTimeout bounds the time that QEMU takes to open its sockets.
const connectTimeout = time.Minute

// lifeError says after how long a machine was killed.
type lifeError time.Duration

func (e lifeError) Error() string { return fmt.Sprintf("machine killed after %v", time.Duration(e)) }

// wait collects the process. A machine that had to be killed failed, whatever its
// exit status.
func (v *VM) wait(ctx context.Context) {
	err := v.cmd.Wait()
	var life lifeError
	switch {
	case errors.As(context.Cause(ctx), &life):
		err = life
	case err != nil:
		err = fmt.Errorf("qemu: %w", err)
	}
	v.err = err
	close(v.done)
	v.port.end(err)
}

// connect waits for QEMU on both sockets. QEMU may end instead of connecting.
func (v *VM) connect(portEnd, qmpEnd net.Listener) error {
	stopped := make(chan struct{})
	defer close(stopped)
	go func() {
		select {
		case <-v.done:
			portEnd.Close()
			qmpEnd.Close()
		case <-stopped:
		}
	}()
	conn, err := portEnd.Accept()
	if err != nil {
		return v.ended(err)
	}
	v.port.serve(conn, v.started)
	if v.config != nil {
		if _, err := conn.Write(v.config); err != nil {
			return v.ended(err)
		}
	}
	conn, err = qmpEnd.Accept()
	if err != nil {
		return v.ended(err)
	}
	v.qmp, err = greet(conn)
	if err != nil {
		return v.ended(err)
	}
	return nil
}

// ended prefers the reason why QEMU ended to the error that followed from it.
func (v *VM) ended(err error) error {
	select {
	case <-v.done:
		if v.err != nil {
			return v.err
		}
		return errors.New("qemu ended before it connected")
	default:
		return err
	}
}

func (v *VM) path(name string) string { return filepath.Join(v.dir, name) }

// PID returns the process id of QEMU.
func (v *VM) PID() int { return v.cmd.Process.Pid }

// Wait waits until the machine has ended by itself.
func (v *VM) Wait(ctx context.Context) error {
	select {
	case <-v.done:
		return v.err
	case <-ctx.Done():
		return fmt.Errorf("machine still runs: %w", context.Cause(ctx))
	}
}

// Close kills what is left of the machine and removes its folder, unless KEEP is
// set. It fails if a process of the machine survives.
func (v *VM) Close() error {
	var err error
	v.stop.Do(func() { err = v.close() })
	return err
}

func (v *VM) close() error {
	if v.cancel != nil {
		v.cancel()
	}
	var err error
	if v.cmd != nil && v.cmd.Process != nil {
		<-v.done
		// The process group outlives its leader if QEMU has left a helper behind.
		err = process.GroupGone(v.cmd.Process.Pid)
	}
	v.port.close()
	if v.qmp != nil {
		v.qmp.conn.Close()
	}
	if v.output != nil {
		v.output.Close()
	}
	if os.Getenv("KEEP") != "" {
		return err
	}
	return errors.Join(err, os.RemoveAll(v.dir))
}
