package initrd

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Module is a kernel module file.
type Module struct {
	Name string // with underscores, as the kernel spells it
	Path string // of a .ko, .ko.gz, .ko.xz or .ko.zst
}

// maxModule bounds a module, unpacked. The largest of a distribution's kernel, a
// graphics driver, has about 30 MB with its symbols.
const maxModule = 128 << 20

// Resolve finds the named modules and everything that they depend on below dir, the
// folder /lib/modules/VERSION of an unpacked kernel package, and returns them in the
// order in which they load. It reads what each module itself says of its
// dependencies: modules.dep is written when a package is installed, not when it is
// unpacked. A module that modules.builtin names is part of the kernel and left out.
func Resolve(dir string, names ...string) ([]Module, error) {
	r := &resolver{found: map[string]string{}, seen: map[string]bool{}}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if name, _, is := strings.Cut(d.Name(), ".ko"); is {
				r.found[spell(name)] = path
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(builtin)) {
		r.seen[spell(strings.TrimSuffix(filepath.Base(strings.TrimSpace(line)), ".ko"))] = true
	}
	for _, name := range names {
		if err := r.add(name, nil); err != nil {
			return nil, err
		}
	}
	return r.order, nil
}

func spell(name string) string { return strings.ReplaceAll(name, "-", "_") }

type resolver struct {
	found map[string]string
	seen  map[string]bool // in order, or part of the kernel
	order []Module
}

// add puts the module's dependencies and then the module into the order. chain are
// the modules that led here.
func (r *resolver) add(name string, chain []string) error {
	if r.seen[name] {
		return nil
	}
	for _, c := range chain {
		if c == name {
			return fmt.Errorf("kernel modules: %s depends on itself through %s", name, strings.Join(chain, ", "))
		}
	}
	m := Module{Name: name, Path: r.found[name]}
	if m.Path == "" {
		return fmt.Errorf("kernel module %s: not found%s", name, neededBy(chain))
	}
	depends, err := m.depends()
	if err != nil {
		return err
	}
	for _, d := range depends {
		if err := r.add(d, append(chain, name)); err != nil {
			return err
		}
	}
	r.seen[name] = true
	r.order = append(r.order, m)
	return nil
}

func neededBy(chain []string) string {
	if len(chain) == 0 {
		return ""
	}
	return ", needed by " + chain[len(chain)-1]
}

// depends reads the "depends" field of the module's .modinfo section, which is a
// sequence of NUL-terminated key=value strings.
func (m Module) depends() ([]string, error) {
	text, err := m.read()
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("kernel module %s: %w", m.Path, err)
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("kernel module %s: no .modinfo section", m.Path)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("kernel module %s: .modinfo: %w", m.Path, err)
	}
	var out []string
	for field := range strings.SplitSeq(string(info), "\x00") {
		list, is := strings.CutPrefix(field, "depends=")
		if !is {
			continue
		}
		for name := range strings.SplitSeq(list, ",") {
			if name != "" {
				out = append(out, spell(name))
			}
		}
	}
	return out, nil
}

// read returns the module unpacked.
func (m Module) read() ([]byte, error) {
	f, err := os.Open(m.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	switch filepath.Ext(m.Path) {
	case ".gz":
		r, err = gzip.NewReader(f)
	case ".zst":
		var z *zstd.Decoder
		z, err = zstd.NewReader(f, zstd.WithDecoderMaxMemory(maxModule))
		if err == nil {
			defer z.Close()
		}
		r = z
	case ".xz":
		var text []byte
		text, err = unxz(f)
		r = bytes.NewReader(text)
	}
	if err != nil {
		return nil, fmt.Errorf("kernel module %s: %w", m.Path, err)
	}
	text, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(text) > maxModule {
		err = fmt.Errorf("more than %d bytes", maxModule)
	}
	if err != nil {
		return nil, fmt.Errorf("kernel module %s: %w", m.Path, err)
	}
	return text, nil
}

func unxz(f *os.File) ([]byte, error) {
	var failure bytes.Buffer
	cmd := exec.Command("xz", "--decompress", "--stdout")
	cmd.Stdin, cmd.Stderr = f, &failure
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("xz: %w: %s", err, bytes.TrimSpace(failure.Bytes()))
	}
	return text, nil
}
