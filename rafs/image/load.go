package image

import (
	"bytes"
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
// ([FindBootstrap]). Such a blob is taken for the one of opts.InlineBlobID, else
// for the one that its name says, else for that of its SHA-256. What is opened is
// read once, into sealed memory: what happens to the file afterwards cannot
// matter. Errors wrap ErrCorrupt, ErrUnsupported or ErrDigest, or are those of
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
		return openSealed(f, opts) // it can be read once only
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
		return openSealed(io.NewSectionReader(r, 0, size), opts)
	}
	data, err := FindBootstrap(r, size)
	if errors.Is(err, ErrNoBootstrap) {
		return nil, fmt.Errorf("%w: no magic of RAFS v5 or v6: %w", ErrCorrupt, err)
	}
	if err != nil {
		return nil, err
	}
	return openSealed(bytes.NewReader(data), opts)
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

// openSealed makes an image of a bootstrap that it copies.
func openSealed(r io.Reader, opts Options) (*Image, error) {
	data, sum, err := seal(r)
	if err != nil {
		return nil, err
	}
	im, err := parse(data, sum, opts)
	if err != nil {
		unmap(data)
		return nil, err
	}
	im.unmap = func() error { return unmap(data) }
	return im, nil
}

// seal copies all of r into memory that can be neither written nor resized, by
// this process or any other, and returns it with its SHA-256. A mapping of the
// file itself would raise SIGBUS when the file shrinks, and change when it does.
func seal(r io.Reader) ([]byte, [sha256.Size]byte, error) {
	var sum [sha256.Size]byte
	fd, err := memfd()
	if err != nil {
		return nil, sum, fmt.Errorf("memfd_create: %w", err)
	}
	mem := os.NewFile(uintptr(fd), "memfd:bootstrap")
	defer mem.Close()
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(mem, hash), io.LimitReader(r, MaxBootstrap+1))
	if err != nil {
		return nil, sum, err
	}
	if n == 0 {
		return nil, sum, corrupt(0, "no bytes")
	}
	if n > MaxBootstrap {
		return nil, sum, unsupported(0, "bootstrap longer than %d bytes", MaxBootstrap)
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return nil, sum, fmt.Errorf("seal bootstrap: %w", err)
	}
	// Kernels before 6.7 refuse a shared mapping of what is sealed against writing,
	// even one that cannot write. A private one that is never written is the same.
	data, err := unix.Mmap(fd, 0, int(n), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, sum, fmt.Errorf("mmap bootstrap: %w", err)
	}
	hash.Sum(sum[:0])
	return data, sum, nil
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
