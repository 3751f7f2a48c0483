package config

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
)

// unset marks a cache on disk whose folder nobody named. No path has a zero byte.
const unset = "\x00"

// repoPattern is the grammar of repository names
// (OCI distribution-spec 1.1, "Pulling manifests").
var repoPattern = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)

// kinds are the backends of this version, for messages.
const kinds = `"` + BackendRegistry + `", "` + BackendLocalFS + `", "` + BackendS3 + `" or "` + BackendOSS + `"`

// check finds what is wrong in a whole configuration, after flags and the
// environment had their say. Keys are named as the file has them.
func (c *Config) check() error {
	var problems []error
	problem := func(key, format string, args ...any) {
		problems = append(problems, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	switch c.Backend.Type {
	case BackendLocalFS:
		if c.Backend.LocalFS.Dir == "" && c.Backend.LocalFS.BlobFile == "" {
			problem(c.where.store+".dir", "missing, want the folder of the blobs (or blob_file)")
		}
	case BackendRegistry:
		c.Backend.Registry.check(c.where.store, problem)
	case BackendOSS, BackendS3:
		c.Backend.Object.check(c.Backend.Type, c.where.store, problem)
	case "http-proxy", "localdisk":
		problem(c.where.backend+".type", "%q is not supported by this version, want %s", c.Backend.Type, kinds)
	case "":
		problem(c.where.backend+".type", "missing, want %s", kinds)
	default:
		problem(c.where.backend+".type", "want %s, got %q", kinds, c.Backend.Type)
	}
	if c.Cache.WorkDir == unset {
		problem(c.where.workDir, "missing, want the cache folder")
	}
	return errors.Join(problems...)
}

func (r *Registry) check(path string, problem func(key, format string, args ...any)) {
	switch {
	case r.Host == "":
		problem(path+".host", "missing, want HOST or HOST:PORT")
	case !validHost(r.Host):
		problem(path+".host", "want HOST or HOST:PORT, without scheme and path")
	}
	switch {
	case r.Repo == "":
		problem(path+".repo", "missing, want the repository, such as library/debian")
	case !repoPattern.MatchString(r.Repo):
		problem(path+".repo", "want a repository name in lower case, such as library/debian, got %.80q", r.Repo)
	}
	if r.BlobRedirectedHost != "" && !validHost(r.BlobRedirectedHost) {
		problem(path+".blob_redirected_host", "want HOST or HOST:PORT")
	}
	if r.Auth.IsSet() {
		if _, _, err := r.BasicAuth(); err != nil {
			problem(path+".auth", "%v", err)
		}
	}
}

func (o *ObjectStore) check(kind, path string, problem func(key, format string, args ...any)) {
	switch {
	case o.Endpoint == "" && kind == BackendOSS:
		problem(path+".endpoint", "missing, want HOST or HOST:PORT")
	case o.Endpoint != "" && !validHost(o.Endpoint):
		problem(path+".endpoint", "want HOST or HOST:PORT, without scheme and path")
	}
	if o.Bucket == "" {
		problem(path+".bucket_name", "missing, want the name of the bucket")
	}
	if o.Region == "" && kind == BackendS3 {
		problem(path+".region", "missing, want the region, such as us-east-1")
	}
	if (o.AccessKeyID == "") != !o.AccessKeySecret.IsSet() {
		problem(path+".access_key_id", "want it and access_key_secret, or neither")
	}
}

// validHost accepts what may stand between // and / of an address, without
// credentials: a name or an address, an IPv6 address in brackets when a port follows.
func validHost(s string) bool {
	if s == "" || strings.ContainsAny(s, "/@?#\\ \t\r\n%") {
		return false
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
		return !strings.Contains(host, ":") || net.ParseIP(host) != nil
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return host != "" && err == nil
}

// BasicAuth returns the user and the password of Auth. Without Auth they are empty.
func (r *Registry) BasicAuth() (user, password string, err error) {
	if !r.Auth.IsSet() {
		return "", "", nil
	}
	text, err := base64.StdEncoding.DecodeString(strings.TrimSpace(r.Auth.Reveal()))
	if err != nil {
		// The decoder's own message would quote a byte of the secret.
		return "", "", errors.New("want base64 of USER:PASSWORD, this is no base64")
	}
	user, password, ok := strings.Cut(string(text), ":")
	if !ok {
		return "", "", errors.New("want base64 of USER:PASSWORD, there is no colon in it")
	}
	return user, password, nil
}
