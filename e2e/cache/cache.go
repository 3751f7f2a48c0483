// Package cache keeps what is expensive to make or to download between runs: a
// kernel, a root file system. An entry is a folder with a name; it appears whole or
// not at all, and two runs that want the same one make it once.
//
// It trusts its folder, which belongs to the user. It never removes an entry.
package cache

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Dir returns the folder of all entries: $RAFSD_CACHE, or rafsd in the user's cache
// folder, so that each clone of the repository finds what another one has fetched.
func Dir() (string, error) {
	if dir := os.Getenv("RAFSD_CACHE"); dir != "" {
		return dir, nil
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cache folder: %w (set RAFSD_CACHE)", err)
	}
	return filepath.Join(base, "rafsd"), nil
}

// Has reports whether there is an entry with that name, or one below it.
func Has(name string) bool {
	base, err := Dir()
	if err != nil {
		return false
	}
	st, err := os.Stat(filepath.Join(base, name))
	return err == nil && st.IsDir()
}

// Entry returns the folder of the named entry, and calls fill first when there is
// none yet. fill gets an empty folder, which becomes the entry when it returns nil.
func Entry(ctx context.Context, name string, fill func(ctx context.Context, dir string) error) (string, error) {
	base, err := Dir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(base, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(path + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	part := path + ".part"
	if err := os.RemoveAll(part); err != nil {
		return "", err
	}
	if err := os.Mkdir(part, 0o755); err != nil {
		return "", err
	}
	if err := fill(ctx, part); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return path, os.Rename(part, path)
}

// lock waits for the lock of an entry. It is released when the process ends,
// however it ends.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}
