package config

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"maps"
	"time"
)

type table = map[string]any

// Encode returns the configuration as version 2 JSON with every key that has an
// effect, sorted: two configurations that mean the same encode to the same bytes.
// Secrets are in it only if reveal is set; else it can be shown to anybody.
func (c *Config) Encode(reveal bool) []byte {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	// A tree of maps, strings and numbers always encodes.
	_ = enc.Encode(c.tree(reveal))
	return out.Bytes()
}

// String is the configuration without its secrets.
func (c *Config) String() string { return string(c.Encode(false)) }

// MarshalJSON is the configuration without its secrets.
func (c *Config) MarshalJSON() ([]byte, error) { return json.Marshal(c.tree(false)) }

// LogValue is the configuration without its secrets.
func (c *Config) LogValue() slog.Value { return slog.AnyValue(c.tree(false)) }

func (c *Config) tree(reveal bool) table {
	cache := table{"type": "", "prefetch": c.Cache.Prefetch.tree()}
	if c.Cache.WorkDir != "" {
		cache["type"] = "blobcache"
		cache["filecache"] = table{"work_dir": c.Cache.WorkDir}
	}
	backend := table{"type": c.Backend.Type}
	switch c.Backend.Type {
	case BackendLocalFS:
		l := c.Backend.LocalFS
		backend["localfs"] = table{"blob_file": l.BlobFile, "dir": l.Dir, "alt_dirs": list(l.AltDirs)}
	case BackendRegistry:
		backend["registry"] = c.Backend.Registry.tree(reveal)
	case BackendOSS, BackendS3:
		backend[c.Backend.Type] = c.Backend.Object.tree(reveal)
	}
	return table{
		"version": 2, "id": c.ID, "backend": backend, "cache": cache,
		"rafs": table{
			"batch_size": c.RAFS.BatchSize, "enable_xattr": c.RAFS.EnableXattr, "prefetch": c.RAFS.Prefetch.tree(),
		},
		"rafsd": table{
			"memory_limit": c.Rafsd.MemoryLimit, "connections": c.Rafsd.Connections, "metrics": c.Rafsd.Metrics,
		},
	}
}

func (r *Registry) tree(reveal bool) table {
	auth, token := r.Auth.String(), r.Token.String()
	if reveal {
		auth, token = r.Auth.Reveal(), r.Token.Reveal()
	}
	t := r.HTTP.tree(reveal)
	maps.Copy(t, table{
		"scheme": r.Scheme, "host": r.Host, "repo": r.Repo, "auth": auth, "registry_token": token,
		"blob_url_scheme": r.BlobURLScheme, "blob_redirected_host": r.BlobRedirectedHost,
	})
	return t
}

func (o *ObjectStore) tree(reveal bool) table {
	secret := o.AccessKeySecret.String()
	if reveal {
		secret = o.AccessKeySecret.Reveal()
	}
	t := o.HTTP.tree(reveal)
	maps.Copy(t, table{
		"scheme": o.Scheme, "endpoint": o.Endpoint, "region": o.Region, "bucket_name": o.Bucket, "object_prefix": o.Prefix,
		"access_key_id": o.AccessKeyID, "access_key_secret": secret,
	})
	return t
}

func (h *HTTP) tree(reveal bool) table {
	p := h.Proxy
	proxy := p.URL.String()
	if reveal {
		proxy = p.URL.Reveal()
	}
	return table{
		"skip_verify": h.SkipVerify, "ca_cert_files": list(h.CACertFiles), "retry_limit": h.RetryLimit,
		"timeout": seconds(h.Timeout), "connect_timeout": seconds(h.ConnectTimeout),
		"proxy": table{
			"url": proxy, "ping_url": p.PingURL, "fallback": p.Fallback, "use_http": p.UseHTTP,
			"check_interval": seconds(p.CheckInterval), "check_pause_elapsed": seconds(p.CheckPause),
			"dragonfly_scheduler_endpoint": p.DragonflyScheduler,
		},
	}
}

func (p *Prefetch) tree() table {
	return table{
		"enable": p.Enable, "threads": p.Threads, "batch_size": p.BatchSize,
		"bandwidth_limit": p.BandwidthLimit, "prefetch_all": p.All, "stream_prefetch": p.Stream,
	}
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

// list keeps an empty list from being written as null.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
