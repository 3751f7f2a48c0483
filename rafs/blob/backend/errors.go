package backend

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// What can go wrong, as far as callers tell it apart. The first four are
// permanent: the same request gives the same answer.
var (
	// ErrNotFound means that the source does not have the object.
	ErrNotFound = errors.New("blob not found")
	// ErrDenied means that the source refuses us: credentials, TLS, policy.
	ErrDenied = errors.New("access denied")
	// ErrRange means that the range does not lie inside the object.
	ErrRange = errors.New("range outside the blob")
	// ErrClosed means that the backend was closed.
	ErrClosed = errors.New("backend closed")
	// ErrUnavailable means that the source did not answer, or not as agreed:
	// connection, timeout, 5xx, 429, a short body, a wrong range.
	ErrUnavailable = errors.New("backend unavailable")
)

// Permanent reports whether another try of the same request is pointless. Errors
// that no backend has classified count as transient; the end of a context, which
// is the caller's, does not.
func Permanent(err error) bool {
	for _, p := range [...]error{ErrNotFound, ErrDenied, ErrRange, ErrClosed, context.Canceled} {
		if errors.Is(err, p) {
			return true
		}
	}
	return false
}

// StatusError is an HTTP answer that is not the wanted one.
type StatusError struct {
	// Method and URL tell the request; the URL carries no query and no user.
	Method, URL string
	// Status is the HTTP status code.
	Status int
	// RetryAfter is how long the server asked to be left alone; 0 if it did not.
	RetryAfter time.Duration
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("%s %s: status %d", e.Method, e.URL, e.Status)
	if e.RetryAfter > 0 {
		s += fmt.Sprintf(", retry after %v", e.RetryAfter)
	}
	return s
}

// Unwrap sorts the status into the errors of this package.
func (e *StatusError) Unwrap() error {
	switch e.Status {
	case 404, 410:
		return ErrNotFound
	case 416:
		return ErrRange
	case 408, 425, 429:
		return ErrUnavailable
	}
	if e.Status >= 400 && e.Status < 500 {
		return ErrDenied
	}
	return ErrUnavailable
}

// retryAfter is the longest wait that a server asked for anywhere in err.
func retryAfter(err error) time.Duration {
	var se *StatusError
	if errors.As(err, &se) {
		return se.RetryAfter
	}
	return 0
}
