// Package backend says what a source of blob objects is, and holds what all
// sources share: errors that say whether another try makes sense, and decorators
// that are backends themselves.
//
// Nothing that a backend returns is trusted. It gives bytes of the asked length
// or an error; whether they are the right bytes is decided by digests above it.
package backend

import "context"

// Backend is a place that keeps blob objects. All methods are safe for
// concurrent use.
type Backend interface {
	// Open gives a reader of the blob with this id. It checks the id
	// (blob.ErrBadID) and touches neither network nor disk: a blob that does
	// not exist shows at the first read. Readers need no closing; they end
	// with their backend.
	Open(id string) (Reader, error)
	// Close frees what the backend holds. Reads that run, or come later, fail.
	// Calling it again does nothing.
	Close() error
}

// Reader reads one blob object.
type Reader interface {
	// Size is the size of the object in bytes.
	Size(ctx context.Context) (int64, error)
	// ReadRange fills all of p with the object's bytes from off, or returns an
	// error; there are no short reads. After an error p holds nothing of use.
	// Permanent tells errors that another try cannot mend. A range that leaves
	// the object is ErrRange. A call ends soon after ctx does.
	ReadRange(ctx context.Context, p []byte, off int64) error
}

type freshKey struct{}

// Fresh marks ctx so that reads under it bypass whatever may hold a stale or
// damaged copy: remembered redirects, proxies, peers. The fetch engine asks so
// after a digest mismatch.
func Fresh(ctx context.Context) context.Context {
	return context.WithValue(ctx, freshKey{}, true)
}

// IsFresh reports whether ctx comes from Fresh.
func IsFresh(ctx context.Context) bool {
	fresh, _ := ctx.Value(freshKey{}).(bool)
	return fresh
}

type progressKey struct{}

// WithProgress asks reads under ctx to call fn with the number of bytes at the
// start of p that have arrived, while the rest is still to come. A backend may do
// so, from the goroutine that called ReadRange. When a read is tried again the
// number begins anew, and so do the bytes: fn must be done with them when it returns.
func WithProgress(ctx context.Context, fn func(n int)) context.Context {
	return context.WithValue(ctx, progressKey{}, fn)
}

// Progress is what a read under ctx has to call; it does nothing if nobody asked.
func Progress(ctx context.Context) func(n int) {
	if fn, ok := ctx.Value(progressKey{}).(func(n int)); ok {
		return fn
	}
	return func(int) {}
}
