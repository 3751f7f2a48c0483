// Package initrd builds the initial RAM disk of a guest: a cpio archive with the
// guest's init, the kernel modules that it loads and the order in which it does.
// Equal inputs give equal bytes.
//
// It trusts the init program and the module files that it is given; they run with
// all rights inside the guest. It runs no program but xz, for modules that are
// compressed that way, and writes nothing but the archive.
package initrd

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Compression of the archive. The kernel must know it (CONFIG_RD_GZIP, CONFIG_RD_ZSTD).
type Compression string

// An emulated machine boots faster from an archive that is not compressed.
const (
	None Compression = ""
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
)

// DefaultModules are what init needs: the virtio bus, the port to the host, virtio-fs
// and overlayfs. Modules that these depend on are found by [Resolve].
var DefaultModules = []string{"virtio_pci", "virtio_console", "virtiofs", "overlay"}

// Options of [Build].
type Options struct {
	// Init is the path of the init program, statically linked.
	Init string
	// Modules are the kernel modules to load, dependencies first, as [Resolve]
	// returns them.
	Modules     []Module
	Compression Compression
}

// epoch is the modification time of everything in the archive.
var epoch = time.Unix(1, 0)

// Build writes the archive.
func Build(w io.Writer, o Options) error {
	packed, err := compressor(w, o.Compression)
	if err != nil {
		return err
	}
	a := &archive{out: cpio.NewWriter(packed)}
	a.dir("modules")
	var order strings.Builder
	for _, m := range o.Modules {
		text, err := m.read()
		if err != nil {
			return err
		}
		fmt.Fprintf(&order, "%s.ko\n", m.Name)
		a.file("modules/"+m.Name+".ko", 0o644, text)
	}
	a.file("modules/order", 0o644, []byte(order.String()))
	program, err := os.ReadFile(o.Init)
	if err != nil {
		return fmt.Errorf("init program: %w", err)
	}
	a.file("init", 0o755, program)
	if a.err == nil {
		a.err = a.out.Close()
	}
	if a.err != nil {
		return fmt.Errorf("initrd: %w", a.err)
	}
	return packed.Close()
}

type unpacked struct{ io.Writer }

func (unpacked) Close() error { return nil }

func compressor(w io.Writer, c Compression) (io.WriteCloser, error) {
	switch c {
	case None:
		return unpacked{w}, nil
	case Gzip:
		return gzip.NewWriterLevel(w, gzip.BestSpeed)
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	}
	return nil, fmt.Errorf("initrd: unknown compression %q", c)
}

// archive writes entries and keeps the first error.
type archive struct {
	out   *cpio.Writer
	inode int64
	err   error
}

func (a *archive) entry(h *cpio.Header, text []byte) {
	if a.err != nil {
		return
	}
	a.inode++
	h.Inode, h.Links, h.ModTime, h.Size = a.inode, 1, epoch, int64(len(text))
	if a.err = a.out.WriteHeader(h); a.err == nil {
		_, a.err = io.Copy(a.out, bytes.NewReader(text))
	}
}

func (a *archive) dir(name string) {
	a.entry(&cpio.Header{Name: name, Mode: cpio.TypeDir | 0o755}, nil)
}

func (a *archive) file(name string, mode cpio.FileMode, text []byte) {
	a.entry(&cpio.Header{Name: name, Mode: cpio.TypeReg | mode}, text)
}
