// Package registry reads blobs from an OCI registry by ranges of
// GET /v2/<repo>/blobs/sha256:<id>.
//
// Credentials go to the configured host only: redirects are followed here, at
// most five, and lose them when they lead elsewhere; HTTPS never becomes HTTP. A
// token that expired is renewed once, by one of the readers that met it. The
// answer to a range is checked to be that range; what is in it is not.
package registry

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/httprange"
)

// Options configure a Backend. Host and Repo are required, all else has a
// default.
type Options struct {
	// Host is the registry's host, with a port unless it is the scheme's own.
	Host string
	// Repo is the repository, without the host.
	Repo string
	// Scheme is "https" or "http". The default is https, and http for loopback.
	Scheme string

	// Auth is base64 of user:password; RegistryToken is a bearer token. Each goes
	// before Keychain.
	Auth, RegistryToken string
	// Keychain finds credentials; it is asked again each time the registry wants
	// new ones. The default reads the docker configuration and its helpers.
	Keychain authn.Keychain

	// RedirectScheme and RedirectHost replace those parts of redirects (nydus'
	// blob_url_scheme and blob_redirected_host).
	RedirectScheme, RedirectHost string

	// CAFiles are PEM files of certificate authorities to trust besides the
	// system's. SkipVerify trusts any certificate.
	CAFiles    []string
	SkipVerify bool

	// ConnectTimeout bounds dialling and the TLS handshake, each. Default 5 s.
	ConnectTimeout time.Duration
	// FirstByteTimeout bounds the wait for an answer's header. Default 10 s.
	FirstByteTimeout time.Duration
	// StallTimeout is how long a body may stay below MinRate. Default 5 s.
	StallTimeout time.Duration
	// MinRate is in bytes per second. Default 1024.
	MinRate int64
	// Connections is how many idle connections to a host are kept. Default 16.
	Connections int
	// Header is sent with each request to the registry.
	Header http.Header
	// Dial makes connections; nil is the network.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.ConnectTimeout, 5*time.Second)
	def(&o.FirstByteTimeout, 10*time.Second)
	def(&o.StallTimeout, 5*time.Second)
	if o.MinRate <= 0 {
		o.MinRate = 1024
	}
	if o.Connections <= 0 {
		o.Connections = 16
	}
	return o
}

// Backend is one repository of a registry. It implements backend.Backend.
type Backend struct {
	opts Options
	base string // scheme://host/v2/repo/blobs/sha256:
	host string
	auth *authorizer
	http *http.Transport

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	mu     sync.Mutex
	reads  sync.WaitGroup // guarded by mu against Close
}

// New makes a backend. It checks the options and touches files but no network.
func New(o Options) (*Backend, error) {
	o = o.withDefaults()
	switch o.Scheme {
	case "":
		o.Scheme = "https"
		if loopback(o.Host) {
			o.Scheme = "http"
		}
	case "http", "https":
	default:
		return nil, fmt.Errorf("registry scheme %q: want http or https", o.Scheme)
	}
	repo, err := repository(o)
	if err != nil {
		return nil, err
	}
	host := repo.RegistryStr()
	if s := o.RedirectScheme; s != "" && s != "http" && s != "https" {
		return nil, fmt.Errorf("redirect scheme %q: want http or https", s)
	}
	chain, err := keychain(o)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", host, err)
	}
	transport, err := httprange.NewTransport(httprange.TransportOptions{
		CAFiles: o.CAFiles, SkipVerify: o.SkipVerify, ConnectTimeout: o.ConnectTimeout,
		FirstByteTimeout: o.FirstByteTimeout, Connections: o.Connections, Dial: o.Dial,
	})
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", host, err)
	}
	b := &Backend{
		opts: o,
		host: host,
		base: fmt.Sprintf("%s://%s/v2/%s/blobs/sha256:", o.Scheme, host, repo.RepositoryStr()),
		http: transport,
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.auth = &authorizer{
		ctx: b.ctx, repo: repo, scheme: o.Scheme, keychain: chain, transport: transport,
		timeout: o.ConnectTimeout + o.FirstByteTimeout,
	}
	return b, nil
}

// repository parses host and repository, which become part of URLs.
func repository(o Options) (name.Repository, error) {
	opts := []name.Option{name.StrictValidation}
	if o.Scheme == "http" {
		opts = append(opts, name.Insecure)
	}
	repo, err := name.NewRepository(o.Host+"/"+o.Repo, opts...)
	if err != nil {
		return repo, fmt.Errorf("registry %q, repository %q: %w", o.Host, o.Repo, err)
	}
	for part := range strings.SplitSeq(o.Repo, "/") {
		if part == "" || part == "." || part == ".." {
			return repo, fmt.Errorf("registry %q, repository %q: part %q", o.Host, o.Repo, part)
		}
	}
	return repo, nil
}

// loopback reports whether a host, with or without a port, can only be this machine.
func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Open implements backend.Backend.
func (b *Backend) Open(id string) (backend.Reader, error) {
	if err := blob.CheckID(id); err != nil {
		return nil, err
	}
	if b.ctx.Err() != nil {
		return nil, fmt.Errorf("blob %s: %w", id, backend.ErrClosed)
	}
	return &reader{b: b, id: id}, nil
}

// Close implements backend.Backend. It ends reads and waits for them.
func (b *Backend) Close() error {
	b.mu.Lock()
	b.cancel()
	b.mu.Unlock()
	b.reads.Wait()
	b.auth.wait()
	b.http.CloseIdleConnections()
	return nil
}

// begin starts a call that ends with ctx or with the backend.
func (b *Backend) begin(ctx context.Context) (context.Context, func(), error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx.Err() != nil {
		return nil, nil, backend.ErrClosed
	}
	b.reads.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(b.ctx, func() { cancel(backend.ErrClosed) })
	return ctx, func() { stop(); cancel(nil); b.reads.Done() }, nil
}
