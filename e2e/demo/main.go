// Command demo shows what rafsd is for: it boots a virtual machine from a container
// image that nobody has pulled, and counts what had to be fetched for it.
//
// Without arguments it makes a root file system from the host's Debian or Ubuntu
// packages, wraps it as an OCI image, and pushes that to a registry in this process;
// with -image it takes an image that a registry offers. Either way `rafsd convert`
// makes a RAFS image of it, `rafsd virtiofs` serves that, and a machine mounts it
// and runs a program. What it prints is measured: times are the machine's events,
// bytes are what the registry has sent.
//
// It installs QEMU and mmdebstrap with apt if they are missing, and says so before;
// everything else stays in the user's cache folder.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rafsd/rafsd/e2e/cache"
	"github.com/rafsd/rafsd/e2e/registry"
	"github.com/rafsd/rafsd/e2e/vm"
)

// options are what the user may say.
type options struct {
	binary  string
	image   string
	run     string
	memory  int
	latency time.Duration
	rate    float64
}

func parse() options {
	var o options
	flag.StringVar(&o.binary, "bin", "bin/rafsd", "rafsd binary to show")
	flag.StringVar(&o.image, "image", os.Getenv("IMAGE"), "image in a registry to boot from (default: $IMAGE, or one made from this distribution's packages)")
	flag.StringVar(&o.run, "run", os.Getenv("RUN"), "shell command to run in the machine (default: $RUN, or what the image says)")
	flag.IntVar(&o.memory, "memory", 1024, "memory of the machine, MiB")
	flag.DurationVar(&o.latency, "latency", 0, "delay of each answer of the registry, as 20ms")
	flag.Float64Var(&o.rate, "rate", 0, "what the registry sends at most, MB/s (0: no limit)")
	flag.Parse()
	return o
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := demo(ctx, parse())
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

// demo is the whole story, in order.
func demo(ctx context.Context, o options) (err error) {
	binary, err := filepath.Abs(o.binary)
	if err != nil {
		return err
	}
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("%w (make build makes it)", err)
	}
	if err := install(ctx, o.image == ""); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "rafsd-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	boot, err := prepare(ctx, scratch)
	if err != nil {
		return err
	}
	base, err := cache.Dir()
	if err != nil {
		return err
	}
	r, err := registry.Start(filepath.Join(base, "demo-registry"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	p, err := publish(ctx, r, binary, o.image)
	if err != nil {
		return err
	}
	r.SetLimits(registry.Limits{Latency: o.latency, Rate: int64(o.rate * 1e6)})
	return show(ctx, &stage{options: o, binary: binary, scratch: scratch, boot: boot, registry: r, image: p})
}

// prepare gets what machines boot from.
func prepare(ctx context.Context, dir string) (vm.Files, error) {
	if !cache.Has("kernel") {
		fmt.Println("First run: fetching a kernel, making an image and trying whether KVM works takes about two minutes.")
	}
	done := step("kernel and guest")
	files, err := vm.Prepare(ctx, dir)
	if err != nil {
		return files, err
	}
	accel := vm.Accel(ctx, files)
	how := map[string]string{"kvm": "with KVM", "tcg": "emulated: KVM does not work here"}[accel]
	done("Linux %s, %s", files.Version, how)
	return files, nil
}
