package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// listen binds the vhost-user socket, for its owner only: whoever connects hands
// over memory of a guest and gets its file system. A socket that nobody listens on
// any more is replaced.
func listen(o *Options) (net.Listener, error) {
	if o.Listener != nil {
		return o.Listener, nil
	}
	if err := removeStale(o.Socket); err != nil {
		return nil, err
	}
	// The mode must be right from the start, not after a chmod.
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", o.Socket)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", o.Socket, err)
	}
	return l, nil
}

func removeStale(path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("socket: %w", err)
	}
	if fi.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("socket %s: a %s is in the way", path, fi.Mode().Type())
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("socket %s: another process listens there", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("socket %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	return nil
}
