// Package kernel gets a Linux kernel for guests: the one that the host's own
// distribution builds for virtual machines. Its package is downloaded and unpacked
// into the cache, never installed.
//
// It trusts apt, which checks the package's signature, and runs apt-cache, apt-get
// and dpkg-deb; it needs no root rights and changes nothing outside the cache.
package kernel

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rafsd/rafsd/e2e/cache"
)

// Kernel is an unpacked kernel.
type Kernel struct {
	Version string // as uname -r prints it
	Image   string // path of the bootable image
	Modules string // path of its folder of modules
}

// metapackages depend on the newest kernel for virtual machines: Debian's, Ubuntu's.
var metapackages = []string{"linux-image-cloud-amd64", "linux-image-virtual"}

// Get returns the kernel in the cache, downloading the distribution's current one
// when there is none. RAFSD_KERNEL and RAFSD_MODULES, both set, name another one: an
// image file and its folder of modules.
func Get(ctx context.Context) (Kernel, error) {
	image, modules := os.Getenv("RAFSD_KERNEL"), os.Getenv("RAFSD_MODULES")
	if image != "" && modules != "" {
		return Kernel{filepath.Base(modules), image, modules}, nil
	}
	dir, err := cache.Entry(ctx, "kernel", download)
	if err != nil {
		return Kernel{}, err
	}
	return find(dir)
}

// find looks into an unpacked package.
func find(dir string) (Kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil {
		return Kernel{}, err
	}
	if len(images) != 1 {
		return Kernel{}, fmt.Errorf("kernel: %d images in %s/boot, want 1 (remove the folder to fetch it anew)", len(images), dir)
	}
	version := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	for _, lib := range []string{"lib", "usr/lib"} {
		modules := filepath.Join(dir, lib, "modules", version)
		if _, err := os.Stat(modules); err == nil {
			return Kernel{version, images[0], modules}, nil
		}
	}
	return Kernel{}, fmt.Errorf("kernel %s: no folder of modules in %s", version, dir)
}

// download fetches the packages and unpacks them into dir.
func download(ctx context.Context, dir string) error {
	packages, err := resolve(ctx, dependsOf)
	if err != nil {
		return err
	}
	debs, err := os.MkdirTemp("", "rafsd-kernel-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(debs)
	get := exec.CommandContext(ctx, "apt-get", append([]string{"--quiet", "--quiet", "download"}, packages...)...)
	get.Dir = debs
	if err := run(get); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := run(exec.CommandContext(ctx, "dpkg-deb", "--extract", f, dir)); err != nil {
			return err
		}
	}
	_, err = find(dir)
	return err
}

// resolve follows a metapackage to the packages that hold image and modules.
func resolve(ctx context.Context, depends func(context.Context, string) ([]string, error)) ([]string, error) {
	var failures []string
	for _, meta := range metapackages {
		var found []string
		seen := map[string]bool{}
		queue := []string{meta}
		for len(queue) > 0 {
			name := queue[0]
			queue = queue[1:]
			if seen[name] {
				continue
			}
			seen[name] = true
			list, err := depends(ctx, name)
			if err != nil {
				failures = append(failures, err.Error())
				break
			}
			if name != meta {
				found = append(found, name)
			}
			queue = append(queue, slices.DeleteFunc(list, func(d string) bool { return !holdsKernel(d) })...)
		}
		if len(found) > 0 {
			return found, nil
		}
	}
	return nil, fmt.Errorf("no kernel package for virtual machines is known to apt (is `apt-get update` due?): %s", strings.Join(failures, "; "))
}

// holdsKernel tells the packages with an image or modules from firmware and tools.
func holdsKernel(name string) bool {
	return strings.HasPrefix(name, "linux-image-") || strings.HasPrefix(name, "linux-modules-")
}

// dependsOf lists the packages that a package depends on.
func dependsOf(ctx context.Context, name string) ([]string, error) {
	cmd := exec.CommandContext(ctx, "apt-cache", "depends", "--no-recommends", "--no-suggests", "--no-conflicts",
		"--no-breaks", "--no-replaces", "--no-enhances", name)
	var failure bytes.Buffer
	cmd.Stderr = &failure
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("apt-cache depends %s: %w: %s", name, err, bytes.TrimSpace(failure.Bytes()))
	}
	return parseDepends(string(text)), nil
}

// parseDepends takes the first of alternatives, which apt-cache marks with a bar,
// and leaves out virtual packages.
func parseDepends(text string) []string {
	var out []string
	alternative := false
	for line := range strings.Lines(text) {
		kind, name, found := strings.Cut(strings.TrimSpace(line), "Depends: ")
		if !found || kind != "" && kind != "|" && kind != "Pre" && kind != "|Pre" {
			continue
		}
		if name = strings.TrimSuffix(name, "-"); !alternative && !strings.HasPrefix(name, "<") {
			out = append(out, name)
		}
		alternative = kind == "|" || kind == "|Pre"
	}
	return out
}

func run(cmd *exec.Cmd) error {
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(text))
	}
	return nil
}
