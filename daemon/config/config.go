// Package config reads the daemon's configuration: nydusd's version 1 (JSON) and
// version 2 (JSON or TOML), with its keys, defaults and meaning
// (nydus api/src/config.rs), and a table of our own, [rafsd], which nydusd ignores.
//
// A configuration is trusted to say where blobs come from and where the cache
// lies. It is not trusted to be free of mistakes: a value of the wrong kind is an
// error that names the key and what would be right, all of them at once; a key
// that nobody knows is a warning, since nydusd ignores it. Nothing in a
// configuration turns the verification of chunks off, and no credential in it
// is printed or logged.
//
// The package opens no file but the configuration, and dials nothing.
package config

import (
	"fmt"
	"io"
	"os"
	"time"
)

// Limits of nydusd (nydus api/src/config.rs).
const (
	// MaxSize is the largest configuration file in bytes.
	MaxSize = 1 << 20
	// MaxBatch is the largest request size in bytes that a key may ask for.
	MaxBatch = 256 << 20
	// MaxThreads is the largest number of prefetch workers.
	MaxThreads = 1024
)

// The kinds of backend that this version serves.
const (
	BackendLocalFS  = "localfs"
	BackendRegistry = "registry"
	BackendOSS      = "oss"
	BackendS3       = "s3"
)

// Config is a checked configuration. Parse fills it; nobody changes it later.
type Config struct {
	// ID names the daemon instance in logs and metrics.
	ID string
	// Backend is where blobs come from.
	Backend Backend
	// Cache is where chunks are kept.
	Cache Cache
	// RAFS is how an image is served.
	RAFS RAFS
	// Rafsd holds what nydusd has no key for.
	Rafsd Rafsd

	where where
}

// Backend is the source of blobs. The part that Type names is filled.
type Backend struct {
	Type     string
	LocalFS  LocalFS
	Registry Registry
	// Object is that of oss or s3, whichever Type is.
	Object ObjectStore
}

// LocalFS is a folder of blobs, each in a file named by its id.
type LocalFS struct {
	// BlobFile, when set, is the one file that holds the image's only blob.
	BlobFile string
	// Dir is the folder; AltDirs are tried after it.
	Dir     string
	AltDirs []string
}

// Registry is a repository of an OCI registry.
type Registry struct {
	// Scheme is https or http.
	Scheme string
	// Host is HOST or HOST:PORT, Repo the repository without the host.
	Host, Repo string
	// Auth is base64 of USER:PASSWORD; Token a bearer token that is used as it is.
	Auth, Token Secret
	// BlobURLScheme replaces the scheme of a redirected blob address.
	BlobURLScheme string
	// BlobRedirectedHost replaces its host.
	BlobRedirectedHost string
	HTTP               HTTP
}

// ObjectStore is a bucket of one.
type ObjectStore struct {
	// Scheme is https or http.
	Scheme string
	// Endpoint is HOST or HOST:PORT; s3 has Amazon's by default. Region is where it
	// says it is, which oss can do without.
	Endpoint, Region string
	// Bucket is the bucket, Prefix what stands before the ids of blobs in it.
	Bucket, Prefix string
	// AccessKeyID and AccessKeySecret are credentials.
	AccessKeyID     string
	AccessKeySecret Secret
	HTTP            HTTP
}

// HTTP is what every backend over HTTP has.
type HTTP struct {
	// SkipVerify accepts any TLS certificate. Chunks are verified all the same.
	SkipVerify bool
	// CACertFiles are PEM files with further trusted authorities.
	CACertFiles []string
	// Timeout bounds one request, ConnectTimeout its connection; 0 means no bound.
	Timeout, ConnectTimeout time.Duration
	// RetryLimit is how often a failed request is tried again.
	RetryLimit int
	Proxy      Proxy
}

// Proxy is an HTTP proxy in front of the backend.
type Proxy struct {
	// URL is the proxy, PingURL what is asked to see whether it lives.
	URL     URL
	PingURL string
	// Fallback goes without the proxy when it fails.
	Fallback bool
	// CheckInterval is the time between two pings, CheckPause how long after the
	// last use of the proxy they stop.
	CheckInterval, CheckPause time.Duration
	// UseHTTP talks http to the proxy whatever the scheme of the source.
	UseHTTP bool
	// DragonflyScheduler is the address of a Dragonfly scheduler.
	DragonflyScheduler string
}

// Cache is the chunk cache.
type Cache struct {
	// WorkDir is its folder; empty keeps chunks in memory only.
	WorkDir  string
	Prefetch Prefetch
}

// RAFS is how images are served.
type RAFS struct {
	// BatchSize (amplify_io) is up to how many bytes one request to the source may grow beyond
	// what a reader asked for; 0 fetches just that.
	BatchSize int64
	// EnableXattr shows extended attributes of images that do not say they have any.
	EnableXattr bool
	Prefetch    Prefetch
}

// Prefetch is what is fetched before anybody asks.
type Prefetch struct {
	Enable bool
	// Threads is the number of workers.
	Threads int
	// BatchSize is the size of one request in bytes.
	BatchSize int64
	// BandwidthLimit is in bytes a second; 0 for none.
	BandwidthLimit int64
	// All fetches whole blobs after the image's own list.
	All bool
	// Stream fetches a blob by one request without a range.
	Stream bool
}

// Rafsd is the table that nydusd does not know.
type Rafsd struct {
	// MemoryLimit bounds the bytes of fetches in flight and chunks kept in memory.
	MemoryLimit int64
	// Connections is the number of requests in flight to the source.
	Connections int
	// Metrics is the address that metrics are served on; empty for none.
	Metrics string
}

// where remembers the keys of the source for what is checked after the flags
// have been merged in.
type where struct{ backend, store, cache, workDir string }

// defaultBatchSize is an eighth of nydusd's default for amplify_io: what a start of
// an interpreter reads then costs half the bytes in about as many requests, since
// here neighbours that are wanted share a request anyway.
const defaultBatchSize = 128 << 10

// Default returns the configuration that an empty file means, but for the
// backend, which has no default.
func Default() *Config {
	return &Config{
		Backend: Backend{Registry: Registry{Scheme: "https", HTTP: defaultHTTP()}},
		Cache:   Cache{Prefetch: defaultPrefetch()},
		RAFS:    RAFS{BatchSize: defaultBatchSize, Prefetch: defaultPrefetch()},
		Rafsd:   Rafsd{MemoryLimit: 64 << 20, Connections: 8},
		where:   where{"backend", "backend", "cache", "cache.filecache.work_dir"},
	}
}

func defaultHTTP() HTTP {
	return HTTP{
		Timeout: 5 * time.Second, ConnectTimeout: 5 * time.Second,
		Proxy: Proxy{Fallback: true, CheckInterval: 5 * time.Second, CheckPause: 300 * time.Second},
	}
}

func defaultPrefetch() Prefetch { return Prefetch{Threads: 8, BatchSize: 1 << 20} }

// Prefetch returns the prefetch settings that hold: those of the file system
// when they are enabled, else those of the cache.
func (c *Config) Prefetch() Prefetch {
	if c.RAFS.Prefetch.Enable {
		return c.RAFS.Prefetch
	}
	return c.Cache.Prefetch
}

// Option changes a configuration after it was decoded and before it is checked:
// a flag of the command line, a variable of the environment.
type Option func(*Config)

// WithLocalFS makes dir the source of blobs and, unless there is one, the cache
// folder, which is what nydusd's --localfs-dir means.
func WithLocalFS(dir string) Option {
	return func(c *Config) {
		c.Backend = Backend{Type: BackendLocalFS, LocalFS: LocalFS{Dir: dir}, Registry: c.Backend.Registry}
		if c.Cache.WorkDir == "" {
			c.Cache.WorkDir = dir
		}
	}
}

// WithRegistry makes a repository the source of blobs. Other settings of the
// registry (credentials, certificates, timeouts) stay, the credentials only if
// they were given for that host or for none.
func WithRegistry(host, repo string) Option {
	return func(c *Config) {
		r := c.Backend.Registry
		if r.Host != "" && r.Host != host {
			r.Auth, r.Token = Secret{}, Secret{}
		}
		r.Host, r.Repo = host, repo
		c.Backend = Backend{Type: BackendRegistry, Registry: r}
	}
}

// WithCacheDir sets the cache folder, unless dir is empty.
func WithCacheDir(dir string) Option {
	return func(c *Config) {
		if dir != "" {
			c.Cache.WorkDir = dir
		}
	}
}

// WithID sets the instance's name, unless id is empty.
func WithID(id string) Option {
	return func(c *Config) {
		if id != "" {
			c.ID = id
		}
	}
}

// WithEnv takes IMAGE_PULL_AUTH, base64 of USER:PASSWORD, as the registry's
// credentials, before those of the file (nydus src/bin/nydusd/main.rs).
func WithEnv(getenv func(string) string) Option {
	return func(c *Config) {
		if auth := getenv("IMAGE_PULL_AUTH"); auth != "" && c.Backend.Type == BackendRegistry {
			c.Backend.Registry.Auth = NewSecret(auth)
		}
	}
}

// New checks a configuration that consists of defaults and options.
func New(options ...Option) (*Config, error) {
	c := Default()
	for _, o := range options {
		o(c)
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return c, nil
}

// Load reads the file at path and parses it.
func Load(path string, options ...Option) (*Config, []Note, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	c, notes, err := Parse(data, options...)
	if err != nil {
		return nil, notes, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, notes, nil
}
