package treetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

// Bad is a stream that cannot be read as a layer, and a part of what is to be said
// of it.
type Bad struct {
	R    io.Reader
	Want string
}

// Refuses has a source read what it must refuse, and a good stream under a context
// that is over.
func Refuses(t *testing.T, read func(context.Context, io.Reader) (io.Closer, error), good []byte, bad map[string]Bad) {
	t.Helper()
	for name, b := range bad {
		t.Run(name, func(t *testing.T) {
			l, err := read(t.Context(), b.R)
			if err == nil {
				l.Close()
			}
			if err == nil || !strings.Contains(err.Error(), b.Want) {
				t.Errorf("got %v, want %q", err, b.Want)
			}
		})
	}
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := read(ctx, bytes.NewReader(good)); !errors.Is(err, why) {
		t.Errorf("cancelled: got %v, want %v", err, why)
	}
}
