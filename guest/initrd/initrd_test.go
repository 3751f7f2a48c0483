package initrd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// module makes the smallest ELF file with a .modinfo section.
func module(modinfo string) []byte {
	const header, section = 64, 64
	names := "\x00.modinfo\x00.shstrtab\x00"
	infoAt := uint64(header)
	namesAt := infoAt + uint64(len(modinfo))
	tableAt := namesAt + uint64(len(names))
	le := binary.LittleEndian
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...)
	b = le.AppendUint16(b, 1)  // relocatable
	b = le.AppendUint16(b, 62) // x86-64
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, 0)
	b = le.AppendUint64(b, 0)
	b = le.AppendUint64(b, tableAt)
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{header, 0, 0, section, 3, 2} {
		b = le.AppendUint16(b, v)
	}
	b = append(b, modinfo...)
	b = append(b, names...)
	for _, s := range []struct {
		name, kind uint32
		at, size   uint64
	}{{0, 0, 0, 0}, {1, 1, infoAt, uint64(len(modinfo))}, {10, 3, namesAt, uint64(len(names))}} {
		b = le.AppendUint32(b, s.name)
		b = le.AppendUint32(b, s.kind)
		b = le.AppendUint64(b, 0)
		b = le.AppendUint64(b, 0)
		b = le.AppendUint64(b, s.at)
		b = le.AppendUint64(b, s.size)
		b = append(b, make([]byte, 24)...)
	}
	return b
}

// kernel makes a modules folder. Values are what the modules depend on.
func kernel(t *testing.T, depends map[string]string, builtin string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "kernel/fs"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte(builtin), 0o644))
	for file, list := range depends {
		text := module("license=GPL\x00depends=" + list + "\x00name=x\x00")
		must(t, os.WriteFile(filepath.Join(dir, "kernel/fs", file), pack(t, file, text), 0o644))
	}
	return dir
}

func pack(t *testing.T, file string, text []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	switch filepath.Ext(file) {
	case ".gz":
		z := gzip.NewWriter(&out)
		_, err := z.Write(text)
		must(t, errors.Join(err, z.Close()))
	case ".zst":
		z, err := zstd.NewWriter(&out)
		must(t, err)
		_, err = z.Write(text)
		must(t, errors.Join(err, z.Close()))
	case ".xz":
		cmd := exec.Command("xz", "--stdout")
		cmd.Stdin, cmd.Stdout = bytes.NewReader(text), &out
		must(t, cmd.Run())
	default:
		return text
	}
	return out.Bytes()
}

func TestResolve(t *testing.T) {
	dir := kernel(t, map[string]string{
		"virtio.ko":              "",
		"virtio_ring.ko.gz":      "virtio",
		"virtio-pci-modern.ko":   "virtio_ring",
		"virtio_pci.ko.zst":      "virtio-pci-modern,virtio_ring,virtio",
		"fuse.ko.xz":             "",
		"virtiofs.ko":            "fuse,virtio_ring,crc32",
		"not-asked-for.ko":       "absent",
		"looks-like-a-module.so": "",
	}, "kernel/lib/crc32.ko\nkernel/x/not-in-order.ko\n")
	got, err := Resolve(dir, "virtio_pci", "virtiofs", "virtio")
	must(t, err)
	var names []string
	for _, m := range got {
		names = append(names, m.Name)
	}
	want := []string{"virtio", "virtio_ring", "virtio_pci_modern", "virtio_pci", "fuse", "virtiofs"}
	if !slices.Equal(names, want) {
		t.Errorf("order %q, want %q", names, want)
	}
}

func TestResolveRefuses(t *testing.T) {
	for _, tc := range []struct {
		name    string
		modules map[string]string
		want    string
	}{
		{"absent", nil, "kernel module a: not found"},
		{"dependency absent", map[string]string{"a.ko": "b"}, "b: not found, needed by a"},
		{"circle", map[string]string{"a.ko": "b", "b.ko": "a"}, "depends on itself"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Resolve(kernel(t, tc.modules, ""), "a")
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %v, want one with %q", err, tc.want)
			}
		})
	}
	dir := kernel(t, nil, "")
	must(t, os.WriteFile(filepath.Join(dir, "a.ko"), []byte("no ELF file"), 0o644))
	if _, err := Resolve(dir, "a"); err == nil || !strings.Contains(err.Error(), "a.ko") {
		t.Errorf("no ELF file: error %v, want one that names the file", err)
	}
}

func TestBuild(t *testing.T) {
	dir := kernel(t, map[string]string{"b.ko": "", "a.ko.gz": "b"}, "")
	modules, err := Resolve(dir, "a")
	must(t, err)
	program := filepath.Join(t.TempDir(), "program")
	must(t, os.WriteFile(program, []byte("\x7fELF program"), 0o755))
	want := map[string]string{
		"modules":       "",
		"modules/b.ko":  string(module("license=GPL\x00depends=\x00name=x\x00")),
		"modules/a.ko":  string(module("license=GPL\x00depends=b\x00name=x\x00")),
		"modules/order": "b.ko\na.ko\n",
		"init":          "\x7fELF program",
	}
	for _, c := range []Compression{None, Gzip, Zstd} {
		var first, second bytes.Buffer
		must(t, Build(&first, Options{Init: program, Modules: modules, Compression: c}))
		must(t, Build(&second, Options{Init: program, Modules: modules, Compression: c}))
		if !bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Errorf("compression %q: two archives of one input differ", c)
		}
		got := entries(t, c, &first)
		if len(got) != len(want) {
			t.Errorf("compression %q: %d entries, want %d", c, len(got), len(want))
		}
		for name, text := range want {
			if got[name] != text {
				t.Errorf("compression %q: %s is %q, want %q", c, name, got[name], text)
			}
		}
	}
	if err := Build(io.Discard, Options{Init: program, Compression: "lzo"}); err == nil {
		t.Errorf("an unknown compression was accepted")
	}
}

func entries(t *testing.T, c Compression, r io.Reader) map[string]string {
	t.Helper()
	var err error
	switch c {
	case Gzip:
		r, err = gzip.NewReader(r)
	case Zstd:
		r, err = zstd.NewReader(r)
	}
	must(t, err)
	out := map[string]string{}
	for a := cpio.NewReader(r); ; {
		h, err := a.Next()
		if err == io.EOF {
			return out
		}
		must(t, err)
		text, err := io.ReadAll(a)
		must(t, err)
		out[h.Name] = string(text)
		if want := cpio.FileMode(0o755); h.Name == "init" && h.Mode.Perm() != want {
			t.Errorf("init has mode %o, want %o", h.Mode.Perm(), want)
		}
	}
}
