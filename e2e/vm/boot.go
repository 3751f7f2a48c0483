package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rafsd/rafsd/e2e/cache"
	"github.com/rafsd/rafsd/e2e/kernel"
	"github.com/rafsd/rafsd/e2e/process"
	"github.com/rafsd/rafsd/guest/initrd"
	"github.com/rafsd/rafsd/guest/report"
)

// Files are what a machine boots from.
type Files struct {
	Version string // of the kernel
	Kernel  string
	Initrd  string
}

// Prepare gets a kernel, builds the guest's init and packs the initrd, into dir.
func Prepare(ctx context.Context, dir string) (Files, error) {
	k, err := kernel.Get(ctx)
	if err != nil {
		return Files{}, err
	}
	program := filepath.Join(dir, "init")
	if err := process.Build(ctx, "./guest/init", program); err != nil {
		return Files{}, err
	}
	modules, err := initrd.Resolve(k.Modules, initrd.DefaultModules...)
	if err != nil {
		return Files{}, err
	}
	path := filepath.Join(dir, "initrd")
	f, err := os.Create(path)
	if err != nil {
		return Files{}, err
	}
	err = initrd.Build(f, initrd.Options{Init: program, Modules: modules})
	if err := errors.Join(err, f.Close()); err != nil {
		return Files{}, err
	}
	return Files{k.Version, k.Image, path}, nil
}

// probeLife bounds the try whether KVM works. Where it does, a boot takes less than
// two seconds.
const probeLife = 10 * time.Second

var probing sync.Mutex

// Accel returns "kvm" where a machine boots with it, and else "tcg". A /dev/kvm that
// opens says little: inside another virtual machine it may be there and not work. So
// a machine is booted once; the answer is kept for as long as the host is up.
// RAFSD_ACCEL overrides it.
func Accel(ctx context.Context, boot Files) string {
	if a := os.Getenv("RAFSD_ACCEL"); a != "" {
		return a
	}
	probing.Lock()
	defer probing.Unlock()
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "tcg"
	}
	dir, err := cache.Entry(ctx, "kvm-"+strings.TrimSpace(string(id)), func(ctx context.Context, dir string) error {
		accel := "kvm"
		if err := tryKVM(ctx, boot); err != nil {
			if ctx.Err() != nil {
				return err
			}
			accel = "tcg"
		}
		return os.WriteFile(filepath.Join(dir, "accel"), []byte(accel), 0o644)
	})
	if err != nil {
		return "tcg"
	}
	accel, err := os.ReadFile(filepath.Join(dir, "accel"))
	if err != nil {
		return "tcg"
	}
	return string(accel)
}

func tryKVM(ctx context.Context, boot Files) error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	f.Close()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		return err
	}
	v, err := Start(ctx, Options{Boot: boot, Accel: "kvm", Life: probeLife, Config: report.Config{}})
	if err != nil {
		return err
	}
	defer v.Close()
	if _, _, err := v.AwaitType(ctx, 0, report.Ready); err != nil {
		return fmt.Errorf("boot with KVM: %w", err)
	}
	return nil
}
