package blob

import "fmt"

// CheckID refuses ids that are no plain name. An id becomes a file name and a
// part of a URL, so only letters, digits, dot, dash and underscore pass, at most
// MaxIDLen of them, and the first is no dot. The error wraps ErrBadID.
func CheckID(id string) error {
	if id == "" || len(id) > MaxIDLen {
		return fmt.Errorf("%w: %d bytes, want 1 to %d", ErrBadID, len(id), MaxIDLen)
	}
	for i := range len(id) {
		c := id[i]
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '-', c == '_':
		case c == '.' && i > 0:
		default:
			return fmt.Errorf("%w: byte %#02x at %d of %q", ErrBadID, c, i, id)
		}
	}
	return nil
}
