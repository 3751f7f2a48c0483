package vm

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/rafsd/rafsd/guest/report"
)

// kernelParameters: the console carries what the kernel thinks is worth an error,
// and a panic ends the machine at once instead of leaving it to its time limit. On a
// busy host an emulated timer may be late for the kernel's check of it, which would
// then panic; under KVM the kernel leaves the check out by itself.
const kernelParameters = "console=ttyS0 loglevel=4 panic=-1 no_timer_check rdinit=/init "

// arguments of QEMU. The memory is a shared memfd: the back-end maps it.
func arguments(o Options, dir, parameter string) []string {
	a := []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35,memory-backend=mem,graphics=off",
		"-smp", fmt.Sprint(o.CPUs), "-m", fmt.Sprintf("%dM", o.Memory),
		"-object", fmt.Sprintf("memory-backend-memfd,id=mem,size=%dM,share=on", o.Memory),
		"-kernel", o.Boot.Kernel, "-initrd", o.Boot.Initrd,
		"-append", kernelParameters + parameter,
		"-chardev", "file,id=console,path=" + filepath.Join(dir, "console.log"), "-serial", "chardev:console",
		"-chardev", "socket,id=qmp,path=" + filepath.Join(dir, "qmp"), "-mon", "chardev=qmp,mode=control",
		"-chardev", "socket,id=port,path=" + filepath.Join(dir, "port"),
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=port,name=" + report.PortName,
	}
	switch o.Accel {
	case "kvm":
		a = append(a, "-accel", "kvm", "-cpu", "host")
	default:
		a = append(a, "-accel", "tcg,thread=multi", "-cpu", "max")
	}
	if !o.Reboot {
		a = append(a, "-no-reboot")
	}
	for i, f := range o.FS {
		queues, size := max(f.Queues, 1), f.QueueSize
		if size == 0 {
			size = 1024
		}
		a = append(a, "-chardev", fmt.Sprintf("socket,id=fs%d,path=%s", i, f.Socket),
			"-device", fmt.Sprintf("vhost-user-fs-pci,chardev=fs%d,tag=%s,queue-size=%d,num-request-queues=%d", i, f.Tag, size, queues))
	}
	return a
}

// Command returns QEMU's command line, quoted for a shell.
func (v *VM) Command() string {
	if v.cmd == nil {
		return ""
	}
	var words []string
	for _, a := range v.cmd.Args {
		if strings.ContainsAny(a, " '\"$&|;<>()*?\\`") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}

// Describe says what there is to know of a machine that failed: its command line,
// the end of its console and of QEMU's own messages, its last events.
func (v *VM) Describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "--- machine\n%s\n", v.Command())
	for _, name := range []string{"qemu.log", "console.log"} {
		text, err := os.ReadFile(v.path(name))
		if err != nil {
			text = []byte(err.Error())
		}
		fmt.Fprintf(&b, "--- %s\n%s\n", name, bytes.TrimSpace(tail(text, 8<<10)))
	}
	fmt.Fprintf(&b, "--- last events\n")
	for _, r := range v.port.last(10) {
		e := r.Event
		e.Data = tail(e.Data, 200)
		fmt.Fprintf(&b, "%8.3f %s\n", r.At.Seconds(), line(e))
	}
	if os.Getenv("KEEP") != "" {
		fmt.Fprintf(&b, "--- kept in %s\n", v.dir)
	} else {
		fmt.Fprintf(&b, "--- KEEP=1 keeps the machine's folder\n")
	}
	return b.String()
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// Console returns what the guest's kernel wrote.
func (v *VM) Console() (string, error) {
	text, err := os.ReadFile(v.path("console.log"))
	return string(text), err
}
