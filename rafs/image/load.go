package image

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// Open opens an image by a file: its bootstrap, or a blob with a bootstrap inside
// ([ExtractBootstrap]). Such a blob is taken for the one of opts.InlineBlobID, else
// for the one that its name says, else for that of its SHA-256. What is opened is
// read once, into sealed memory or a file of its own (opts.InFile): what happens
// to the file afterwards cannot matter. Errors wrap ErrCorrupt, ErrUnsupported or ErrDigest, or are those of
// the file.
func Open(path string, opts Options) (*Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	defer f.Close()
	im, err := openFile(f, opts)
	if err != nil {
		return nil, fmt.Errorf("bootstrap %s: %w", path, err)
	}
	return im, nil
}

func openFile(f *os.File, opts Options) (*Image, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return openStream(f, opts) // it can be read once only
	}
	bare, err := isBootstrap(f, st.Size())
	if err != nil {
		return nil, err
	}
	if !bare && opts.InlineBlobID == "" {
		if opts.InlineBlobID, err = blobID(f); err != nil {
			return nil, err
		}
	}
	return OpenAt(f, st.Size(), opts)
}

// OpenAt is Open for anything of size bytes that can be read in places, as an
// object of a registry can: of a blob only the bootstrap is read. A blob needs
// opts.InlineBlobID.
func OpenAt(r io.ReaderAt, size int64, opts Options) (*Image, error) {
	bare, err := isBootstrap(r, size)
	if err != nil {
		return nil, err
	}
	if bare {
		return openStream(io.NewSectionReader(r, 0, size), opts)
	}
	im, err := openCopy(opts, func(w io.Writer) error { return ExtractBootstrap(w, r, size) })
	if errors.Is(err, ErrNoBootstrap) {
		return nil, fmt.Errorf("%w: no magic of RAFS v5 or v6: %w", ErrCorrupt, err)
	}
	return im, err
}

// isBootstrap tells a bootstrap by its magic. A blob without data may begin with
// one, but then it ends with the header of that or of a table of contents.
func isBootstrap(r io.ReaderAt, size int64) (bool, error) {
	var head [v6.SuperOffset + 4]byte
	n, err := r.ReadAt(head[:min(max(size, 0), int64(len(head)))], 0)
	if err != nil && err != io.EOF {
		return false, err
	}
	if !isV6(head[:n]) && !isV5(head[:n]) {
		return false, nil
	}
	tail, err := readAt(r, uint64(max(size-v6.TarHeaderSize, 0)), uint64(min(size, v6.TarHeaderSize)))
	if err != nil {
		return false, err
	}
	h, err := v6.DecodeTarHeader(tail)
	return err != nil || h.Name != v6.SectionBootstrap && h.Name != v6.SectionTOC, nil
}

// blobID is the id of a blob in a file.
func blobID(f *os.File) (string, error) {
	name := filepath.Base(f.Name())
	if _, err := hex.DecodeString(name); err == nil && len(name) == 2*sha256.Size {
		return name, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// openStream makes an image of a bootstrap that it copies.
func openStream(r io.Reader, opts Options) (*Image, error) {
	return openCopy(opts, func(w io.Writer) error {
		n, err := io.Copy(w, io.LimitReader(r, MaxBootstrap+1))
		switch {
		case err != nil:
			return err
		case n > MaxBootstrap:
			return unsupported(0, "bootstrap longer than %d bytes", MaxBootstrap)
		}
		return nil
	})
}

// openCopy makes an image of a bootstrap that fill writes.
func openCopy(opts Options, fill func(io.Writer) error) (*Image, error) {
	f, sum, err := keep(opts, fill)
	if err != nil {
		return nil, err
	}
	var p *pages
	if opts.InFile {
		p = &pages{file: f, limit: keptPages}
	} else {
		defer f.Close()
	}
	data, err := mapped(f)
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	if p != nil {
		p.data = data
	}
	im, err := parse(data, sum, opts, p)
	if err != nil {
		unmap(data)
		p.close()
		return nil, err
	}
	im.unmap = func() error { return errors.Join(unmap(data), p.close()) }
	return im, nil
}

// mapped maps a file. Kernels before 6.7 refuse a shared mapping of what is sealed
// against writing, even one that cannot write. A private one that is never written
// is the same.
func mapped(f *os.File) ([]byte, error) {
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	if n == 0 || n > MaxBootstrap {
		return nil, corrupt(0, "bootstrap of %d bytes, want 1 to %d", n, MaxBootstrap)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(n), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("mmap bootstrap of %d bytes: %w", n, err)
	}
	return data, nil
}

// keep copies a bootstrap to where nobody can change it, and returns it with its
// SHA-256. A mapping of the file that it came from would raise SIGBUS when that
// shrinks, and change when it does.
func keep(opts Options, fill func(io.Writer) error) (_ *os.File, sum [sha256.Size]byte, err error) {
	open := memory
	if opts.InFile {
		open = func() (*os.File, error) { return nameless(cmp.Or(opts.TempDir, os.TempDir())) }
	}
	f, err := open()
	if err != nil {
		return nil, sum, err
	}
	hash := sha256.New()
	err = fill(io.MultiWriter(f, hash))
	if err == nil && !opts.InFile {
		err = seal(f)
	}
	if err != nil {
		return nil, sum, errors.Join(err, f.Close())
	}
	hash.Sum(sum[:0])
	return f, sum, nil
}

// nameless makes a file that nobody else can open.
func nameless(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), filepath.Join(dir, "bootstrap")), nil
	}
	// Not every file system has such files.
	f, err := os.CreateTemp(dir, "rafsd-bootstrap-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// seal makes memory that can be neither written nor resized, by this process or
// any other.
func seal(f *os.File) error {
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("seal bootstrap: %w", err)
	}
	return nil
}

// memory is a file in memory.
func memory() (*os.File, error) {
	fd, err := memfd()
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	return os.NewFile(uintptr(fd), "memfd:bootstrap"), nil
}

// memfd asks for memory that cannot be executed, which hosts may insist on
// (vm.memfd_noexec); kernels before 6.3 do not know the flag.
func memfd() (int, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("bootstrap", flags|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate("bootstrap", flags)
	}
	return fd, err
}

func unmap(data []byte) error {
	if err := unix.Munmap(data); err != nil {
		return fmt.Errorf("munmap bootstrap: %w", err)
	}
	return nil
}
