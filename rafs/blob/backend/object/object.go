// Package object reads and writes blobs in a bucket of an object store, by the
// requests that Amazon's S3, those who speak like it, and Alibaba's OSS have in
// common. What they do not share, above all how requests are signed, is a Dialect,
// which packages s3 and oss make.
//
// Nothing that a store says of a blob is believed: an answer to a range is checked
// to be that range, and what is in it is verified by whoever asked. A blob gets its
// name in a bucket when all of it has arrived as it was sent, never before: the store
// checks a digest of each part. Credentials go into signatures of requests to the
// configured host, and nowhere else, neither into errors nor after redirects, which
// are not followed.
package object

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/httprange"
)

// Config says where a bucket is and how to reach it. Endpoint and Bucket are
// required (Region, too, of S3); all else has a default. What nydus calls the same
// is in nydus api/src/config.rs, OssConfig and S3Config.
type Config struct {
	// Scheme is "https", the default, or "http".
	Scheme string
	// Endpoint is the store's host, with a port unless it is the scheme's own. A
	// scheme before it goes before Scheme.
	Endpoint string
	// Region is where the store says it is.
	Region string
	// Bucket is the name of the bucket. Prefix stands before the ids of blobs in the
	// names of objects, as it is.
	Bucket, Prefix string
	// AccessKeyID and AccessKeySecret are credentials. Without them the packages of
	// the dialects look where their stores' own tools do.
	AccessKeyID, AccessKeySecret string

	// CAFiles are PEM files of certificate authorities to trust besides the
	// system's. SkipVerify trusts any certificate.
	CAFiles    []string
	SkipVerify bool
	// ConnectTimeout bounds dialling and the TLS handshake, each. Default 5 s.
	ConnectTimeout time.Duration
	// FirstByteTimeout bounds the wait for an answer's header. Default 10 s.
	FirstByteTimeout time.Duration
	// StallTimeout is how long the body of an answer may stay below MinRate. Default 5 s.
	StallTimeout time.Duration
	// MinRate is in bytes per second. Default 1024.
	MinRate int64
	// WriteTimeout is how long a store may take nothing of what it is sent, or may
	// think about it. Default 60 s.
	WriteTimeout time.Duration
	// Connections is how many idle connections to a host are kept. Default 16.
	Connections int
	// Dial makes connections; nil is the network.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Dialect is what stores do each in their own way.
type Dialect struct {
	// Kind is how users call the store, such as "s3".
	Kind string
	// Host is where requests go; Path is what their path begins with, before the
	// slash and the name of the object.
	Host, Path string
	// Sum makes the digest of a body, and SetSum puts it into the header of a
	// request, so that the store refuses another body; nil is no body.
	Sum    func() hash.Hash
	SetSum func(h http.Header, sum []byte)
	// Sign signs a request, which is complete, about an object. Without credentials
	// it does nothing.
	Sign func(ctx context.Context, req *http.Request, key string) error
}

// validBucket accepts what stores take as names, none of which needs an escape in a
// URL. It is no regular expression, which would cost every start of a daemon.
func validBucket(name string) bool {
	if len(name) < 3 || len(name) > 63 {
		return false
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case (c == '.' || c == '-' || c == '_') && i > 0 && i < len(name)-1:
		default:
			return false
		}
	}
	return true
}

// maxPrefix is how long a prefix may be: the name of an object has at most 1023 bytes.
const maxPrefix = 1023 - blob.MaxIDLen

// Normalize checks a configuration and returns it with its defaults.
func (c Config) Normalize() (Config, error) {
	for _, scheme := range []string{"https", "http"} {
		if host, ok := strings.CutPrefix(c.Endpoint, scheme+"://"); ok {
			c.Scheme, c.Endpoint = scheme, host
		}
	}
	c.Endpoint = strings.TrimSuffix(c.Endpoint, "/")
	if c.Scheme == "" {
		c.Scheme = "https"
	}
	switch {
	case c.Scheme != "https" && c.Scheme != "http":
		return c, fmt.Errorf("scheme %.20q: want https or http", c.Scheme)
	case c.Endpoint == "":
		return c, errors.New("no endpoint: want HOST or HOST:PORT")
	case strings.ContainsAny(c.Endpoint, "/@?#\\% \t\r\n"):
		return c, errors.New("endpoint: want HOST or HOST:PORT") // it may have a password inside
	case !validBucket(c.Bucket):
		return c, fmt.Errorf("bucket name %.80q: want 3 to 63 letters, digits, dots and dashes", c.Bucket)
	case (c.AccessKeyID == "") != (c.AccessKeySecret == ""):
		return c, errors.New("want access_key_id and access_key_secret, or neither")
	}
	if err := checkPrefix(c.Prefix); err != nil {
		return c, err
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.ConnectTimeout, 5*time.Second)
	def(&c.FirstByteTimeout, 10*time.Second)
	def(&c.StallTimeout, 5*time.Second)
	def(&c.WriteTimeout, time.Minute)
	if c.MinRate <= 0 {
		c.MinRate = 1024
	}
	if c.Connections <= 0 {
		c.Connections = 16
	}
	return c, nil
}

func checkPrefix(prefix string) error {
	switch {
	case len(prefix) > maxPrefix:
		return fmt.Errorf("object prefix of %d bytes: want at most %d", len(prefix), maxPrefix)
	case !utf8.ValidString(prefix):
		return fmt.Errorf("object prefix %.80q: want UTF-8", prefix)
	case strings.ContainsFunc(prefix, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("object prefix %.80q: has a control character", prefix)
	}
	for part := range strings.SplitSeq(prefix, "/") {
		if part == "." || part == ".." {
			return fmt.Errorf("object prefix %.80q: has a part %q, which servers resolve", prefix, part)
		}
	}
	return nil
}

// IsIP tells whether the host of an endpoint is an address.
func IsIP(endpoint string) bool {
	host, _, err := net.SplitHostPort(endpoint)
	if err != nil {
		host = strings.TrimSuffix(strings.TrimPrefix(endpoint, "["), "]")
	}
	return net.ParseIP(host) != nil
}

// Bucket is a bucket, or the part of one whose objects have a prefix. It implements
// backend.Backend.
type Bucket struct {
	c    Config
	d    Dialect
	http *http.Transport

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	mu     sync.Mutex
	calls  sync.WaitGroup // guarded by mu against Close
}

// New makes a bucket of a configuration that went through Normalize. It touches
// files but no network.
func New(c Config, d Dialect) (*Bucket, error) {
	transport, err := httprange.NewTransport(httprange.TransportOptions{
		CAFiles: c.CAFiles, SkipVerify: c.SkipVerify, ConnectTimeout: c.ConnectTimeout, Connections: c.Connections, Dial: c.Dial,
	})
	if err != nil {
		return nil, err
	}
	transport.ExpectContinueTimeout = time.Second
	b := &Bucket{c: c, d: d, http: transport}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b, nil
}

// String names the bucket for people: its kind, endpoint, name and prefix.
func (b *Bucket) String() string {
	return fmt.Sprintf("%s bucket %s/%s at %s", b.d.Kind, b.c.Bucket, b.c.Prefix, b.c.Endpoint)
}

// Open implements backend.Backend.
func (b *Bucket) Open(id string) (backend.Reader, error) {
	if err := blob.CheckID(id); err != nil {
		return nil, err
	}
	if b.ctx.Err() != nil {
		return nil, fmt.Errorf("blob %s: %w", id, backend.ErrClosed)
	}
	return &reader{b: b, id: id}, nil
}

// Close implements backend.Backend. It ends what runs and waits for it.
func (b *Bucket) Close() error {
	b.mu.Lock()
	b.cancel()
	b.mu.Unlock()
	b.calls.Wait()
	b.http.CloseIdleConnections()
	return nil
}

// begin starts a call that ends with ctx or with the bucket.
func (b *Bucket) begin(ctx context.Context) (context.Context, func(), error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx.Err() != nil {
		return nil, nil, backend.ErrClosed
	}
	b.calls.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(b.ctx, func() { cancel(backend.ErrClosed) })
	return ctx, func() { stop(); cancel(nil); b.calls.Done() }, nil
}
