package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// maxDepth bounds how deep brackets nest; the schema needs five.
const maxDepth = 64

// Parse reads a configuration in any of the three forms, told apart as nydusd
// does: JSON with a version is version 2, other JSON version 1, and what is no
// JSON is TOML of version 2. The error joins everything that is wrong.
func Parse(data []byte, options ...Option) (*Config, []Note, error) {
	if len(data) > MaxSize {
		return nil, nil, fmt.Errorf("larger than %d bytes", MaxSize)
	}
	if err := checkDepth(data); err != nil {
		return nil, nil, err
	}
	values, isJSON, err := values(data)
	if err != nil {
		return nil, nil, err
	}
	d := &decoder{}
	c := Default()
	root := &node{d: d, values: values}
	switch {
	case isJSON && !root.has("version") && root.has("device"):
		d.v1(root, c)
	case root.has("version"):
		d.v2(root, c)
	case isJSON:
		return nil, nil, errors.New(`neither "version": 2 nor "device", which version 1 begins with`)
	default:
		return nil, nil, errors.New("version: missing, want version = 2 (version 1 is written in JSON)")
	}
	for _, o := range options {
		o(c)
	}
	if err := errors.Join(d.err(), c.check()); err != nil {
		return nil, d.notes, err
	}
	return c, d.notes, nil
}

// values decodes the syntax only. Text that begins like a JSON object is JSON,
// so that a slip in it is reported as one of JSON.
func values(data []byte) (m map[string]any, isJSON bool, err error) {
	text := bytes.TrimLeft(data, " \t\r\n")
	if len(text) == 0 {
		return nil, false, errors.New("empty")
	}
	if text[0] == '{' {
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.UseNumber()
		if err := dec.Decode(&m); err != nil {
			return nil, true, fmt.Errorf("JSON: %.300s", jsonPosition(data, err).Error())
		}
		if _, err := dec.Token(); !errors.Is(err, io.EOF) {
			return nil, true, fmt.Errorf("JSON: text after the object, at byte %d", dec.InputOffset())
		}
		return m, true, nil
	}
	if _, err := toml.Decode(string(data), &m); err != nil {
		return nil, false, fmt.Errorf("TOML: %.300s", err.Error())
	}
	return m, false, nil
}

// jsonPosition adds the line to a syntax error, which knows the byte only.
func jsonPosition(data []byte, err error) error {
	var syntax *json.SyntaxError
	if !errors.As(err, &syntax) || syntax.Offset > int64(len(data)) {
		return err
	}
	return fmt.Errorf("line %d: %w", 1+bytes.Count(data[:syntax.Offset], []byte("\n")), err)
}

// checkDepth refuses text whose brackets nest so deep that a decoder's recursion
// would matter. Brackets inside strings count too: nobody has so many unclosed.
func checkDepth(data []byte) error {
	depth, dots := 0, 0
	for i, b := range data {
		switch b {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case '.':
			dots++
		case '\n':
			dots = 0
		}
		if depth > maxDepth || dots > 8*maxDepth {
			return fmt.Errorf("nested deeper than %d at byte %d", maxDepth, i)
		}
	}
	return nil
}

// v2 decodes version 2, TOML or JSON.
func (d *decoder) v2(root *node, c *Config) {
	var version int64
	root.integer("version", &version, 2, 2)
	root.str("id", &c.ID)
	c.where = where{"backend", "backend", "cache", "cache.filecache.work_dir"}
	if t, ok := root.sub("backend"); ok {
		t.str("type", &c.Backend.Type)
		c.where.store = "backend." + c.Backend.Type
		for _, kind := range []string{"localfs", "registry", "oss", "s3", "http-proxy", "localdisk"} {
			s, _ := t.sub(kind)
			if kind == c.Backend.Type {
				d.store(s, c)
			}
		}
		t.end()
	}
	if t, ok := root.sub("cache"); ok {
		kind := d.cache(t)
		if p, ok := t.sub("prefetch"); ok {
			d.prefetch(p, prefetchV2, &c.Cache.Prefetch)
		}
		for _, name := range []string{"filecache", "fscache"} {
			s, found := t.sub(name)
			if name == "filecache" && kind == "blobcache" {
				d.fileCache(s, found, c)
			}
		}
		t.end()
	}
	if t, ok := root.sub("rafs"); ok {
		d.rafs(t, "batch_size", "validate", c)
		if p, ok := t.sub("prefetch"); ok {
			d.prefetch(p, prefetchV2, &c.RAFS.Prefetch)
		}
		t.end()
	}
	d.unserved(root)
	if root.has("overlay") {
		root.skip("overlay")
		d.problem("overlay", "writable overlays are assembled in the guest; remove this table")
	}
	d.rafsd(root, c)
	root.end()
}

// v1 decodes version 1, which is JSON.
func (d *decoder) v1(root *node, c *Config) {
	c.where = where{"device.backend", "device.backend.config", "device.cache", "device.cache.config.work_dir"}
	device, _ := root.sub("device")
	device.str("id", &c.ID)
	backend, _ := device.sub("backend")
	backend.str("type", &c.Backend.Type)
	store, _ := backend.sub("config")
	d.store(store, c)
	backend.end()
	if cache, ok := device.sub("cache"); ok {
		kind := d.cache(cache)
		s, found := cache.sub("config")
		if kind == "blobcache" {
			d.fileCache(s, found, c)
		}
		cache.end()
	}
	d.unserved(device)
	device.end()
	d.rafs(root, "amplify_io", "digest_validate", c)
	c.RAFS.Prefetch.All = true
	if p, ok := root.sub("fs_prefetch"); ok {
		d.prefetch(p, prefetchV1, &c.RAFS.Prefetch)
	}
	d.rafsd(root, c)
	root.end()
}

// store decodes the keys of the backend that c.Backend.Type names.
func (d *decoder) store(n *node, c *Config) {
	switch c.Backend.Type {
	case BackendLocalFS:
		l := &c.Backend.LocalFS
		n.str("blob_file", &l.BlobFile)
		n.str("dir", &l.Dir)
		n.strings("alt_dirs", &l.AltDirs)
	case BackendRegistry:
		d.registry(n, &c.Backend.Registry)
	case BackendOSS, BackendS3:
		d.object(n, &c.Backend.Object)
	default:
		return
	}
	// nydus-snapshotter writes readahead, which no version of the schema reads.
	n.skip("readahead")
	n.end()
}

func (d *decoder) registry(n *node, r *Registry) {
	n.oneOf("scheme", &r.Scheme, "https", "http")
	n.str("host", &r.Host)
	n.str("repo", &r.Repo)
	n.secret("auth", &r.Auth)
	n.secret("registry_token", &r.Token)
	n.oneOf("blob_url_scheme", &r.BlobURLScheme, "", "https", "http")
	n.str("blob_redirected_host", &r.BlobRedirectedHost)
	d.http(n, &r.HTTP)
}

func (d *decoder) object(n *node, o *ObjectStore) {
	o.Scheme, o.HTTP = "https", defaultHTTP()
	n.oneOf("scheme", &o.Scheme, "https", "http")
	n.str("endpoint", &o.Endpoint)
	for _, scheme := range []string{"https", "http"} { // as the tools of the stores take it
		if host, ok := strings.CutPrefix(o.Endpoint, scheme+"://"); ok {
			o.Scheme, o.Endpoint = scheme, host
		}
	}
	n.str("region", &o.Region)
	n.str("bucket_name", &o.Bucket)
	n.str("object_prefix", &o.Prefix)
	n.str("access_key_id", &o.AccessKeyID)
	n.secret("access_key_secret", &o.AccessKeySecret)
	d.http(n, &o.HTTP)
}

// http decodes the keys of all backends over HTTP.
func (d *decoder) http(n *node, h *HTTP) {
	n.boolean("skip_verify", &h.SkipVerify)
	n.strings("ca_cert_files", &h.CACertFiles)
	n.seconds("timeout", &h.Timeout)
	n.seconds("connect_timeout", &h.ConnectTimeout)
	retries := int64(h.RetryLimit)
	n.integer("retry_limit", &retries, 0, 255)
	h.RetryLimit = int(retries)
	if h.SkipVerify {
		d.warn(n.key("skip_verify"), "any TLS certificate is accepted: credentials can be stolen on the way (chunks are verified all the same)")
	}
	if n.has("mirrors") {
		n.skip("mirrors")
		d.warn(n.key("mirrors"), "ignored, as by nydusd since 2.4")
	}
	if p, ok := n.sub("proxy"); ok {
		d.proxy(p, &h.Proxy)
	}
}

func (d *decoder) proxy(n *node, p *Proxy) {
	address := p.URL.Reveal()
	n.str("url", &address)
	if address != "" {
		u, err := url.Parse(address)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			d.problem(n.key("url"), "want http://HOST:PORT or https://HOST:PORT")
		} else {
			p.URL = NewURL(address)
		}
	}
	n.str("ping_url", &p.PingURL)
	n.boolean("fallback", &p.Fallback)
	n.seconds("check_interval", &p.CheckInterval)
	n.seconds("check_pause_elapsed", &p.CheckPause)
	n.boolean("use_http", &p.UseHTTP)
	n.str("dragonfly_scheduler_endpoint", &p.DragonflyScheduler)
	switch {
	case !p.URL.IsSet() && p.DragonflyScheduler == "":
	case p.Fallback:
		d.warn(n.path, "this version goes to the source directly, which fallback = true allows")
	default:
		d.problem(n.path, "proxies are not supported by this version, and fallback = false forbids going without")
	}
	n.end()
}

// maxSeconds is what the 32-bit keys of nydusd hold.
const maxSeconds = 1<<32 - 1

func (n *node) seconds(key string, dst *time.Duration) {
	s := int64(*dst / time.Second)
	n.integer(key, &s, 0, maxSeconds)
	*dst = time.Duration(s) * time.Second
}

// cache decodes what both versions have in common and returns blobcache when
// chunks are to be kept on disk.
func (d *decoder) cache(n *node) string {
	var kind string
	var compressed, validate bool
	n.oneOf("type", &kind, "", "blobcache", "filecache", "dummycache", "fscache")
	n.boolean("compressed", &compressed)
	n.boolean("validate", &validate)
	if compressed {
		d.warn(n.key("compressed"), "ignored: the cache holds uncompressed chunks, so that they can be served without work")
	}
	d.verifyNote(n, "validate")
	switch kind {
	case "fscache":
		d.problem(n.key("type"), `"fscache" is not served, want "blobcache"`)
	case "blobcache", "filecache":
		return "blobcache"
	}
	return ""
}

// verifyNote says once that the keys which switch verification in nydusd do nothing.
func (d *decoder) verifyNote(n *node, key string) {
	if _, set := n.values[key]; set && !d.verifySaid {
		d.verifySaid = true
		d.info(n.key(key), "has no effect: every chunk is verified, always")
	}
}

func (d *decoder) fileCache(n *node, found bool, c *Config) {
	var encrypt, convergent bool
	var key Secret
	if found {
		c.Cache.WorkDir = "."
	} else {
		c.Cache.WorkDir = unset
	}
	n.str("work_dir", &c.Cache.WorkDir)
	n.boolean("enable_encryption", &encrypt)
	n.boolean("enable_convergent_encryption", &convergent)
	n.secret("encryption_key", &key)
	n.skip("disable_indexed_map")
	if c.Cache.WorkDir == "" {
		c.Cache.WorkDir = unset
	}
	const encrypted = "an encrypted cache is not supported; put the folder on an encrypted file system"
	if encrypt {
		d.problem(n.key("enable_encryption"), encrypted)
	}
	if convergent {
		d.problem(n.key("enable_convergent_encryption"), encrypted)
	}
	n.end()
}

func (d *decoder) rafs(n *node, batch, validate string, c *Config) {
	mode := "direct"
	var ignored bool
	n.oneOf("mode", &mode, "direct", "cached")
	n.integer(batch, &c.RAFS.BatchSize, 0, MaxBatch)
	n.boolean(validate, &ignored)
	n.boolean("enable_xattr", &c.RAFS.EnableXattr)
	d.verifyNote(n, validate)
	for _, key := range []string{"iostats_files", "access_pattern", "latest_read_files"} {
		on := false
		if n.boolean(key, &on); on {
			d.warn(n.key(key), "ignored: there are no figures by file")
		}
	}
}

// prefetchKeys are the names that differ between the versions.
type prefetchKeys struct{ threads, batch, bandwidth string }

var (
	prefetchV1 = prefetchKeys{"threads_count", "merging_size", "bandwidth_rate"}
	prefetchV2 = prefetchKeys{"threads", "batch_size", "bandwidth_limit"}
)

func (d *decoder) prefetch(n *node, keys prefetchKeys, p *Prefetch) {
	threads, low := int64(p.Threads), int64(0)
	n.boolean("enable", &p.Enable)
	if p.Enable {
		low = 1
	}
	n.integer(keys.threads, &threads, low, MaxThreads)
	n.integer(keys.batch, &p.BatchSize, 0, MaxBatch)
	n.integer(keys.bandwidth, &p.BandwidthLimit, 0, 1<<32-1)
	n.boolean("prefetch_all", &p.All)
	n.boolean("stream_prefetch", &p.Stream)
	p.Threads = int(threads)
	if p.Enable && p.BandwidthLimit > 0 {
		d.info(n.key(keys.bandwidth), "no effect in this version: prefetch yields to what the guest reads, but takes the bandwidth that is left")
	}
	if p.Enable && p.Stream {
		d.info(n.key("stream_prefetch"), "no effect in this version: prefetch reads ranges")
	}
	n.end()
}

// unserved refuses what an image would miss if it were ignored.
func (d *decoder) unserved(n *node) {
	v, ok := n.take("external_backends")
	if list, isList := v.([]any); ok && (!isList || len(list) > 0) {
		d.problem(n.key("external_backends"), "external blobs are not served by this version; remove the key")
	}
}

func (d *decoder) rafsd(root *node, c *Config) {
	n, ok := root.sub("rafsd")
	if !ok {
		return
	}
	connections := int64(c.Rafsd.Connections)
	n.integer("memory_limit", &c.Rafsd.MemoryLimit, 8<<20, 1<<40)
	n.integer("connections", &connections, 1, 256)
	n.str("metrics", &c.Rafsd.Metrics)
	c.Rafsd.Connections = int(connections)
	if m := c.Rafsd.Metrics; m != "" && !strings.Contains(m, ":") {
		d.problem(n.key("metrics"), "want unix:///PATH or HOST:PORT, got %q", m)
	}
	n.end()
}
