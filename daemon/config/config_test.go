package config

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rafsd/rafsd/internal/testenv"
)

// same compares configurations by meaning: not by where their keys stood.
var same = cmpopts.IgnoreUnexported(Config{})

func mustParse(t *testing.T, text string, options ...Option) (*Config, []Note) {
	t.Helper()
	c, notes, err := Parse([]byte(text), options...)
	if err != nil {
		t.Fatalf("Parse: %v\n%s", err, text)
	}
	return c, notes
}

func TestExamples(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(testenv.ModuleRoot(), "configs", "*.*"))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, file := range files {
		if ext := filepath.Ext(file); ext != ".json" && ext != ".toml" {
			continue
		}
		seen++
		t.Run(filepath.Base(file), func(t *testing.T) {
			c, notes, err := Load(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range notes {
				if n.Level >= slog.LevelWarn {
					t.Errorf("warning: %v", n)
				}
			}
			if want := strings.TrimSuffix(filepath.Base(file), filepath.Ext(file)); c.Backend.Type != want {
				t.Errorf("backend %q, want %q as the file is named", c.Backend.Type, want)
			}
		})
	}
	if seen < 4 {
		t.Errorf("%d examples in configs/, want at least 4", seen)
	}
}

const registryV1 = `{"device": {"id": "a", "backend": {"type": "registry", "config": {
	"scheme": "http", "host": "r.example:5000", "repo": "lib/x", "auth": "dTpw", "registry_token": "tok",
	"timeout": 7, "connect_timeout": 3, "retry_limit": 9, "ca_cert_files": ["/ca.pem"], "readahead": false,
	"blob_url_scheme": "http", "blob_redirected_host": "cdn.example", "proxy": {"url": "http://u:p@proxy:65001",
	"ping_url": "http://proxy/ping", "fallback": true, "check_interval": 9, "use_http": true}}},
	"cache": {"type": "blobcache", "config": {"work_dir": "/c", "disable_indexed_map": false}}},
	"mode": "direct", "enable_xattr": true, "amplify_io": 0,
	"fs_prefetch": {"enable": true, "threads_count": 2, "merging_size": 4096, "bandwidth_rate": 5}}`

const registryV2 = `
version = 2
id = "a"
rafs.mode = "direct"
rafs.enable_xattr = true
rafs.batch_size = 0
[backend]
type = "registry"
[backend.registry]
scheme = "http"
host = "r.example:5000"
repo = "lib/x"
auth = "dTpw"
registry_token = "tok"
timeout = 7
connect_timeout = 3
retry_limit = 9
ca_cert_files = ["/ca.pem"]
blob_url_scheme = "http"
blob_redirected_host = "cdn.example"
proxy = {url = "http://u:p@proxy:65001", ping_url = "http://proxy/ping", fallback = true, check_interval = 9, use_http = true}
[cache]
type = "filecache"
filecache.work_dir = "/c"
[rafs.prefetch]
enable = true
threads = 2
batch_size = 4096
bandwidth_limit = 5
prefetch_all = true # the default of version 1
`

func TestBothVersionsMeanTheSame(t *testing.T) {
	want := Default()
	want.ID = "a"
	want.Backend = Backend{Type: "registry", Registry: Registry{
		Scheme: "http", Host: "r.example:5000", Repo: "lib/x", Auth: NewSecret("dTpw"), Token: NewSecret("tok"),
		BlobURLScheme: "http", BlobRedirectedHost: "cdn.example",
		HTTP: HTTP{
			CACertFiles: []string{"/ca.pem"}, Timeout: 7 * time.Second, ConnectTimeout: 3 * time.Second, RetryLimit: 9,
			Proxy: Proxy{
				URL: NewURL("http://u:p@proxy:65001"), PingURL: "http://proxy/ping", UseHTTP: true, Fallback: true,
				CheckInterval: 9 * time.Second, CheckPause: 300 * time.Second,
			},
		},
	}}
	want.Cache.WorkDir = "/c"
	want.RAFS.EnableXattr = true
	want.RAFS.BatchSize = 0
	want.RAFS.Prefetch = Prefetch{Enable: true, Threads: 2, BatchSize: 4096, BandwidthLimit: 5, All: true}
	for name, text := range map[string]string{"v1": registryV1, "v2": registryV2} {
		c, notes := mustParse(t, text)
		if diff := cmp.Diff(want, c, same); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if len(notes) != 2 || !strings.Contains(notes[0].String(), "proxy: this version goes to the source directly") ||
			!strings.Contains(notes[1].String(), "bandwidth") {
			t.Errorf("%s: notes %v, want one about the proxy and one about the bandwidth", name, notes)
		}
		json2, _ := mustParse(t, string(c.Encode(true)))
		if diff := cmp.Diff(want, json2, same); diff != "" {
			t.Errorf("%s through version 2 JSON (-want +got):\n%s", name, diff)
		}
	}
}

func TestDefaults(t *testing.T) {
	v2 := "version = 2\nbackend = {type = \"localfs\", localfs = {dir = \"/b\"}}\n"
	c, _ := mustParse(t, v2)
	if c.RAFS.BatchSize != defaultBatchSize || c.Cache.WorkDir != "" || c.RAFS.Prefetch.All || c.RAFS.Prefetch.Threads != 8 {
		t.Errorf("v2 defaults: %+v", c)
	}
	c, _ = mustParse(t, `{"device":{"backend":{"type":"localfs","config":{"dir":"/b","blob_file":null}}},"mode":"direct"}`)
	if !c.RAFS.Prefetch.All || c.RAFS.Prefetch.Enable {
		t.Errorf("v1 prefetch defaults: %+v, want all and not enabled", c.RAFS.Prefetch)
	}
	c, _ = mustParse(t, v2+"[cache]\ntype = \"blobcache\"\n[cache.filecache]\n")
	if c.Cache.WorkDir != "." {
		t.Errorf("work_dir %q, want . as nydusd has it", c.Cache.WorkDir)
	}
	c, _ = mustParse(t, v2+"[cache]\ntype=\"\"\nprefetch={enable=true, threads=3}\n")
	if p := c.Prefetch(); !p.Enable || p.Threads != 3 {
		t.Errorf("prefetch of the cache: %+v, want enabled with 3 threads", p)
	}
}

func TestProblems(t *testing.T) {
	const local = `version = 2
backend = {type = "localfs", localfs = {dir = "/b"}}
`
	for _, tc := range []struct{ name, text, want string }{
		{"empty", " \n", "empty"},
		{"json slip", "{\n\"version\": 2,\n,}", "JSON: line 3: invalid character ','"},
		{"json tail", `{"version":2} {}`, "JSON: text after the object"},
		{"toml slip", "version = ", "TOML: toml: line 1"},
		{"toml v1", "[device]\n", "version: missing, want version = 2"},
		{"no version", `{"backend": {}}`, `neither "version": 2 nor "device"`},
		{"version 3", local[0:0] + "version = 3\n", "version: want a whole number from 2 to 2, got 3"},
		{"deep", strings.Repeat("[", 70), "nested deeper than 64"},
		{"no backend", "version = 2\n", `backend.type: missing, want "registry", "localfs", "s3" or "oss"`},
		{"oss", `{"device":{"backend":{"type":"oss","config":{"bucket_name":"b"}}}}`, `device.backend.config.endpoint: missing`},
		{"s3", `{"device":{"backend":{"type":"s3","config":{"endpoint":"https://h/"}}}}`, `device.backend.config.endpoint: want HOST or HOST:PORT`},
		{"s3 bucket", `{"device":{"backend":{"type":"s3","config":{}}}}`, `device.backend.config.bucket_name: missing`},
		{"s3 region", `{"device":{"backend":{"type":"s3","config":{}}}}`, `device.backend.config.region: missing`},
		{"s3 key", "version = 2\nbackend = {type = \"s3\", s3 = {access_key_id = \"id\"}}\n", "backend.s3.access_key_id: want it and access_key_secret"},
		{"proxy", `{"device":{"backend":{"type":"http-proxy","config":{}}}}`, `device.backend.type: "http-proxy" is not supported by this version, want "registry", "localfs", "s3" or "oss"`},
		{"typo", `{"device":{"backend":{"type":"regstry"}}}`, `device.backend.type: want "registry", "localfs", "s3" or "oss", got "regstry"`},
		{"no dir v1", `{"device":{"backend":{"type":"localfs","config":{}}}}`, "device.backend.config.dir: missing"},
		{"no dir v2", "version = 2\nbackend.type = \"localfs\"\n", "backend.localfs.dir: missing"},
		{"table", "version = 2\nbackend = 5\n", "backend: want a table, got 5"},
		{"string", `{"device":{"id":7,"backend":{"type":"localfs","config":{"dir":"/b"}}}}`, "device.id: want a string, got 7"},
		{"float", local + "rafs.batch_size = 1.0\n", "rafs.batch_size: want a whole number from 0 to 268435456, got 1.0"},
		{"big", local + "rafs.batch_size = 268435457\n", "got 268435457"},
		{"threads", local + "[rafs.prefetch]\nenable = true\nthreads = 0\n", "rafs.prefetch.threads: want a whole number from 1 to 1024, got 0"},
		{"bool", local + "rafs.enable_xattr = \"yes\"\n", "rafs.enable_xattr: want true or false, got a string"},
		{"mode", local + "rafs.mode = \"fast\"\n", `rafs.mode: want "direct" or "cached", got "fast"`},
		{"list", strings.Replace(local, `"/b"`, `"/b", alt_dirs = ["/x", 3]`, 1), "backend.localfs.alt_dirs[1]: want a string that is not empty, got 3"},
		{"fscache", local + "cache.type = \"fscache\"\n", `cache.type: "fscache" is not served, want "blobcache"`},
		{"no work dir", local + "cache.type = \"blobcache\"\n", "cache.filecache.work_dir: missing"},
		{"empty work dir", local + "cache = {type = \"blobcache\", filecache = {work_dir = \"\"}}\n", "cache.filecache.work_dir: missing"},
		{"encryption", local + "cache = {type = \"blobcache\", filecache = {enable_encryption = true}}\n", "cache.filecache.enable_encryption: an encrypted cache"},
		{"overlay", local + "overlay = {upper_dir = \"/u\", work_dir = \"/w\"}\n", "overlay: writable overlays"},
		{"external", local + "external_backends = [{type = \"x\"}]\n", "external_backends: external blobs"},
		{"metrics", local + "rafsd.metrics = \"9090\"\n", "rafsd.metrics: want unix:///PATH or HOST:PORT"},
		{"host", registry("host", "https://r.example"), "backend.registry.host: want HOST or HOST:PORT, without scheme"},
		{"host user", registry("host", "u:p@r.example"), "backend.registry.host: want HOST"},
		{"repo", registry("repo", "../x"), "backend.registry.repo: want a repository name"},
		{"auth", registry("auth", "not base64"), "backend.registry.auth: want base64 of USER:PASSWORD, this is no base64"},
		{"auth colon", registry("auth", "dXNlcg=="), "backend.registry.auth: want base64 of USER:PASSWORD, there is no colon"},
		{"proxy", `{"version":2,"backend":{"type":"registry","registry":{"host":"h","repo":"r","proxy":{"url":"http://p:1","fallback":false}}}}`,
			"backend.registry.proxy: proxies are not supported by this version"},
		{"scheme", registry("scheme", "ftp"), `backend.registry.scheme: want "https" or "http", got "ftp"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := Parse([]byte(tc.text))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q, want one with %q", fmt.Sprint(err), tc.want)
			}
		})
	}
}

// registry is a good version 2 configuration with one key changed.
func registry(key, value string) string {
	keys := map[string]string{"host": "r.example", "repo": "lib/x", key: value}
	b, _ := json.Marshal(map[string]any{
		"version": 2, "backend": map[string]any{"type": "registry", "registry": keys},
	})
	return string(b)
}

func TestProblemsAreJoined(t *testing.T) {
	_, _, err := Parse([]byte(`{"version": 2, "id": 1, "backend": {"type": "registry", "registry": {"timeout": -1}}}`))
	want := []string{
		"id: want a string, got 1",
		"backend.registry.timeout: want a whole number from 0 to 4294967295, got -1",
		"backend.registry.host: missing, want HOST or HOST:PORT",
		"backend.registry.repo: missing, want the repository, such as library/debian",
	}
	if got := fmt.Sprint(err); got != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
}

func TestNotes(t *testing.T) {
	_, notes := mustParse(t, `{"device": {"backend": {"type": "localfs", "config": {"dir": "/b", "altdirs": []}},
		"cache": {"type": "dummycache", "validate": true, "compresed": true}, "xyz": 1},
		"mode": "direct", "digest_validate": true, "fs_prefetch": {"enable": true, "thread_count": 4}, "iostats_files": true}`)
	var got []string
	for _, n := range notes {
		got = append(got, n.Level.String()+" "+n.String())
	}
	want := []string{
		"WARN device.backend.config.altdirs: unknown key, ignored; did you mean alt_dirs?",
		"INFO device.cache.validate: has no effect: every chunk is verified, always",
		"WARN device.cache.compresed: unknown key, ignored; did you mean compressed?",
		"WARN device.xyz: unknown key, ignored",
		"WARN iostats_files: ignored: there are no figures by file",
		"WARN fs_prefetch.thread_count: unknown key, ignored; did you mean threads_count?",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("notes (-want +got):\n%s", diff)
	}
}

func TestOptions(t *testing.T) {
	env := func(name string) string {
		return map[string]string{"IMAGE_PULL_AUTH": "ZW52OnB3"}[name]
	}
	c, _ := mustParse(t, registryV1, WithEnv(env))
	if user, password, err := c.Backend.Registry.BasicAuth(); user != "env" || password != "pw" || err != nil {
		t.Errorf("IMAGE_PULL_AUTH: %q, %q, %v; want env, pw", user, password, err)
	}
	c, _ = mustParse(t, registryV1, WithRegistry("other.example", "a/b"))
	if r := c.Backend.Registry; r.Auth.IsSet() || r.Token.IsSet() || r.Host != "other.example" || r.Scheme != "http" {
		t.Errorf("credentials went to another host: %v", c)
	}
	c, _ = mustParse(t, registryV1, WithRegistry("r.example:5000", "a/b"), WithCacheDir("/d"))
	if r := c.Backend.Registry; !r.Auth.IsSet() || r.Repo != "a/b" || c.Cache.WorkDir != "/d" {
		t.Errorf("same host, other repository: %v", c)
	}
	c, err := New(WithLocalFS("/blobs"), WithCacheDir(""))
	if err != nil || c.Cache.WorkDir != "/blobs" || c.Backend.LocalFS.Dir != "/blobs" {
		t.Errorf("New(WithLocalFS): %v, %v", c, err)
	}
	// A template without host and repository, as nydus-snapshotter has it, is completed by a reference.
	template := `{"device":{"backend":{"type":"registry","config":{"scheme":"http"}}},"mode":"direct"}`
	if _, _, err := Parse([]byte(template)); err == nil {
		t.Error("a registry without host was accepted")
	}
	mustParse(t, template, WithRegistry("localhost:5000", "x"))
}

func TestSizeLimit(t *testing.T) {
	head := "version = 2\nbackend = {type = \"localfs\", localfs = {dir = \"/b\"}}\n#"
	text := head + strings.Repeat("x", MaxSize-len(head))
	path := filepath.Join(t.TempDir(), "c.toml")
	for size, ok := range map[int]bool{MaxSize: true, MaxSize + 1: false} {
		if err := os.WriteFile(path, []byte((text + "x")[:size]), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Load(path); (err == nil) != ok {
			t.Errorf("%d bytes: %v, want accepted = %t", size, err, ok)
		}
	}
}

func TestPrefetchKeysWithoutEffectAreTold(t *testing.T) {
	_, notes, err := Parse([]byte(`{"device":{"backend":{"type":"localfs","config":{"dir":"/b"}}},"mode":"direct",
		"fs_prefetch":{"enable":true,"bandwidth_rate":1000,"stream_prefetch":true}}`))
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for _, n := range notes {
		told[n.Key] = true
	}
	for _, key := range []string{"fs_prefetch.bandwidth_rate", "fs_prefetch.stream_prefetch"} {
		if !told[key] {
			t.Errorf("nothing is said of %s: %v", key, notes)
		}
	}
}

// Both versions say the same of a bucket, and what is printed does not tell its key.
func TestObjectStore(t *testing.T) {
	const keys = `"endpoint":"h:9000","region":"r","bucket_name":"b","object_prefix":"p/","access_key_id":"id","access_key_secret":"hush","timeout":7`
	want := ObjectStore{
		Scheme: "https", Endpoint: "h:9000", Region: "r", Bucket: "b", Prefix: "p/", AccessKeyID: "id",
		AccessKeySecret: NewSecret("hush"),
	}
	for _, kind := range []string{BackendS3, BackendOSS} {
		for _, text := range []string{
			`{"version":2,"backend":{"type":"` + kind + `","` + kind + `":{` + keys + `}}}`,
			`{"device":{"backend":{"type":"` + kind + `","config":{` + keys + `}}}}`,
		} {
			c, notes := mustParse(t, text)
			got := c.Backend.Object
			if got.HTTP.Timeout != 7*time.Second || got.HTTP.ConnectTimeout != 5*time.Second || len(notes) > 0 {
				t.Errorf("%s: timeouts %v and %v, notes %v: want 7s, 5s and none", text, got.HTTP.Timeout, got.HTTP.ConnectTimeout, notes)
			}
			got.HTTP = HTTP{}
			if !cmp.Equal(got, want) || c.Backend.Type != kind {
				t.Errorf("%s: got %+v, want %+v", text, got, want)
			}
			if strings.Contains(c.String(), "hush") {
				t.Errorf("printed: %s", c)
			}
			if again, _ := mustParse(t, string(c.Encode(true))); !again.Backend.Object.AccessKeySecret.Equal(want.AccessKeySecret) {
				t.Errorf("%s does not read back", c)
			}
		}
	}
}
