package image

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Open reads a bootstrap and returns the model of its image. The file is read
// once, into sealed memory: what happens to it afterwards cannot matter. Errors
// wrap ErrCorrupt, ErrUnsupported or ErrDigest, or are those of the file.
func Open(path string, opts Options) (*Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	defer f.Close()
	data, sum, err := seal(f)
	if err != nil {
		return nil, fmt.Errorf("bootstrap %s: %w", path, err)
	}
	im, err := parse(data, sum, opts)
	if err != nil {
		unmap(data)
		return nil, fmt.Errorf("bootstrap %s: %w", path, err)
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
