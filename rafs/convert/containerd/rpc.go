package containerd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// callTime is what a call may take. containerd answers most of them at once; a
	// snapshotter or a shim behind it may be slow.
	callTime = 30 * time.Second
	// maxAnswer is the largest message that containerd itself sends or takes, in bytes.
	maxAnswer = 16 << 20
	// prefixSize is that of what precedes a message: a byte for compression, four for
	// its length (grpc, PROTOCOL-HTTP2.md).
	prefixSize = 5
)

// Status codes of gRPC.
const (
	codeNotFound      = 5
	codeUnimplemented = 12
	codeUnavailable   = 14
)

// ErrNotFound means that containerd has nothing of that name.
var ErrNotFound = errors.New("not found")

// StatusError is what containerd says of a call that it did not do.
type StatusError struct {
	Method  string // such as "Tasks/Pause"
	Code    int    // of gRPC
	Message string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("containerd refused %s: %s (status %d)", e.Method, e.Message, e.Code)
}

// Is makes the codes that matter comparable.
func (e *StatusError) Is(target error) bool { return target == ErrNotFound && e.Code == codeNotFound }

// UnreachableError means that nobody answers at a socket.
type UnreachableError struct {
	Address string
	Err     error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("containerd does not answer at %s: %v", e.Address, e.Err)
}
func (e *UnreachableError) Unwrap() error { return e.Err }

// newHTTP makes a client of HTTP/2 without TLS, all of whose connections go to one
// unix socket. That is all that gRPC needs for calls with one message each way.
func newHTTP(address string) *http.Client {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{
		Protocols:          &protocols,
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", address)
		},
	}}
}

// call does one call of a service of containerd.
func (c *Client) call(ctx context.Context, service, method string, request []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, callTime, fmt.Errorf("no answer for %v", callTime))
	defer cancel()
	body := binary.BigEndian.AppendUint32(make([]byte, 1, prefixSize+len(request)), uint32(len(request)))
	body = append(body, request...)
	path := "http://containerd/containerd.services." + strings.ToLower(service) + ".v1." + service + "/" + method
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("Te", "trailers")
	r.Header.Set("Containerd-Namespace", c.Namespace)
	response, err := c.http.Do(r)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	defer response.Body.Close()
	answer, err := message(response.Body)
	if status := statusOf(response, service+"/"+method); status != nil {
		if status.Code == codeUnavailable {
			return nil, &UnreachableError{c.Address, status}
		}
		return nil, status
	}
	if err != nil {
		return nil, c.unreachable(ctx, fmt.Errorf("%s/%s: %w", service, method, err))
	}
	return answer, nil
}

// unreachable wraps what went wrong between here and containerd.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, context.Canceled) {
			return cause
		}
		return &UnreachableError{c.Address, cause}
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // the rest names an URL that is none
	}
	return &UnreachableError{c.Address, err}
}

// message reads the one message of a body and what follows, which is nothing: at
// the end of the body the trailer is there.
func message(body io.Reader) ([]byte, error) {
	var prefix [prefixSize]byte
	if _, err := io.ReadFull(body, prefix[:]); err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	size := binary.BigEndian.Uint32(prefix[1:])
	if prefix[0] != 0 || size > maxAnswer {
		return nil, fmt.Errorf("answer of %d bytes, compression %d: want at most %d, not compressed", size, prefix[0], maxAnswer)
	}
	answer := make([]byte, size)
	if _, err := io.ReadFull(body, answer); err != nil {
		return nil, fmt.Errorf("read answer of %d bytes: %w", size, err)
	}
	if n, err := io.Copy(io.Discard, body); err != nil || n != 0 {
		return nil, fmt.Errorf("read answer: %d bytes too many, %w", n, err)
	}
	return answer, nil
}

// statusOf returns how a call ended, nil for well. Of a call that failed at once the
// trailer is in the header.
func statusOf(r *http.Response, method string) *StatusError {
	if r.StatusCode != http.StatusOK {
		return &StatusError{method, codeUnimplemented, "HTTP status " + r.Status}
	}
	code, from := r.Trailer.Get("Grpc-Status"), r.Trailer
	if code == "" {
		code, from = r.Header.Get("Grpc-Status"), r.Header
	}
	if code == "" {
		return nil // cut off, which reading the message has found
	}
	n, err := strconv.Atoi(code)
	if err == nil && n == 0 {
		return nil
	}
	text := from.Get("Grpc-Message")
	if plain, err := url.PathUnescape(text); err == nil {
		text = plain
	}
	return &StatusError{method, n, text}
}
