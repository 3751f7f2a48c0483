package registry_test

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/backendtest"
	"github.com/rafsd/rafsd/rafs/blob/backend/backendtest/faultserver"
	"github.com/rafsd/rafsd/rafs/blob/backend/registry"
)

// anonymous keeps the machine's own docker configuration out of the tests.
var anonymous = authn.NewMultiKeychain()

// serve runs a fault server on loopback and returns options that reach it.
func serve(t *testing.T) (*faultserver.Server, registry.Options) {
	t.Helper()
	s := faultserver.New()
	ts := httptest.NewServer(s)
	t.Cleanup(ts.Close)
	return s, registry.Options{Host: host(t, ts.URL), Repo: "library/test", Keychain: anonymous}
}

func host(t *testing.T, rawURL string) string {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

func open(t *testing.T, o registry.Options, id string) backend.Reader {
	t.Helper()
	b, err := registry.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	r, err := b.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// read reads n bytes at off and checks them against data.
func read(t *testing.T, r backend.Reader, data []byte, off, n int) error {
	t.Helper()
	p := make([]byte, n)
	err := r.ReadRange(t.Context(), p, int64(off))
	if err == nil && !bytes.Equal(p, data[off:off+n]) {
		t.Errorf("%d bytes at %d differ from the blob", n, off)
	}
	return err
}

func auth(user, pass string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + pass))
}

func TestSuite(t *testing.T) {
	testenv.LeakCheck(t)
	for name, setup := range map[string]func(*testing.T, *faultserver.Server, *registry.Options){
		"anonymous": func(*testing.T, *faultserver.Server, *registry.Options) {},
		"basic": func(_ *testing.T, s *faultserver.Server, o *registry.Options) {
			s.RequireBasic("me", "pw:with:colons")
			o.Auth = auth("me", "pw:with:colons")
		},
		"bearer": func(_ *testing.T, s *faultserver.Server, o *registry.Options) {
			s.RequireToken("me", "pw")
			o.Auth = auth("me", "pw")
		},
		"redirected": func(t *testing.T, s *faultserver.Server, _ *registry.Options) {
			// The content of one server, behind another host name.
			cdn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "" {
					t.Errorf("the other host got Authorization %q", r.Header.Get("Authorization"))
				}
				s.Content(w, r)
			}))
			t.Cleanup(cdn.Close)
			s.RequireToken("", "")
			s.SetRedirect(cdn.URL)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, o := serve(t)
			setup(t, s, &o)
			backendtest.Run(t, backendtest.Fixture{
				Put: func(_ *testing.T, data []byte) string { return s.Put(data) },
				New: func(t *testing.T) backend.Backend {
					b, err := registry.New(o)
					if err != nil {
						t.Fatal(err)
					}
					return b
				},
			})
		})
	}
}

func TestPrivateAuthority(t *testing.T) {
	s := faultserver.New()
	ts := httptest.NewUnstartedServer(s)
	ts.Config.ErrorLog = quiet()
	ts.StartTLS()
	defer ts.Close()
	data := backendtest.Data(1000, 1)
	id := s.Put(data)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ts.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	o := registry.Options{Host: host(t, ts.URL), Repo: "r", Scheme: "https", Keychain: anonymous}
	if err := read(t, open(t, o, id), data, 0, 100); !errors.Is(err, backend.ErrDenied) {
		t.Errorf("unknown authority: %v, want ErrDenied", err)
	}
	o.CAFiles = []string{ca}
	if err := read(t, open(t, o, id), data, 0, 100); err != nil {
		t.Errorf("known authority: %v", err)
	}
	o.CAFiles, o.SkipVerify = nil, true
	if err := read(t, open(t, o, id), data, 0, 100); err != nil {
		t.Errorf("any authority: %v", err)
	}
	// HTTPS that was asked for never becomes HTTP, also where Ping would try it.
	plain, po := serve(t)
	po.Scheme = "https"
	plain.RequireToken("", "")
	if err := read(t, open(t, po, plain.Put(data)), data, 0, 100); !errors.Is(err, backend.ErrDenied) {
		t.Errorf("https to a server of http: %v, want ErrDenied", err)
	}
	if n := len(plain.Requests()); n != 0 {
		t.Errorf("the server of http saw %d requests, want 0", n)
	}
}

func TestNewTouchesNoNetwork(t *testing.T) {
	s, o := serve(t)
	b, err := registry.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := b.Open(s.Put([]byte("x"))); err != nil {
		t.Fatal(err)
	}
	if n := len(s.Requests()); n != 0 {
		t.Errorf("%d requests before the first read, want 0", n)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, o := range map[string]registry.Options{
		"no host":     {Repo: "r"},
		"no repo":     {Host: "h.example"},
		"bad repo":    {Host: "h.example", Repo: "UPPER"},
		"traversal":   {Host: "h.example", Repo: "a/../b"},
		"scheme":      {Host: "h.example", Repo: "r", Scheme: "ftp"},
		"redirect":    {Host: "h.example", Repo: "r", RedirectScheme: "file"},
		"auth":        {Host: "h.example", Repo: "r", Auth: "secret!"},
		"auth colon":  {Host: "h.example", Repo: "r", Auth: base64.StdEncoding.EncodeToString([]byte("secret"))},
		"no ca":       {Host: "h.example", Repo: "r", CAFiles: []string{"/does/not/exist"}},
		"ca is no ca": {Host: "h.example", Repo: "r", CAFiles: []string{"/dev/null"}},
	} {
		b, err := registry.New(o)
		if err == nil {
			b.Close()
			t.Errorf("%s: no error", name)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %q tells the credentials", name, err)
		}
	}
}

func TestWrongCredentials(t *testing.T) {
	data := backendtest.Data(1000, 1)
	for name, c := range map[string]struct {
		setup func(*faultserver.Server)
		opts  registry.Options
	}{
		"basic, none":   {func(s *faultserver.Server) { s.RequireBasic("me", "pw") }, registry.Options{}},
		"basic, wrong":  {func(s *faultserver.Server) { s.RequireBasic("me", "pw") }, registry.Options{Auth: auth("me", "no")}},
		"bearer, none":  {func(s *faultserver.Server) { s.RequireToken("me", "pw") }, registry.Options{}},
		"bearer, wrong": {func(s *faultserver.Server) { s.RequireToken("me", "pw") }, registry.Options{Auth: auth("me", "no")}},
		"token, wrong":  {func(s *faultserver.Server) { s.RequireToken("me", "pw") }, registry.Options{RegistryToken: "old"}},
		"realm elsewhere": {func(s *faultserver.Server) {
			s.RequireToken("", "")
			s.SetRealm("http://169.254.169.254/latest/meta-data")
		}, registry.Options{}},
	} {
		t.Run(name, func(t *testing.T) {
			s, o := serve(t)
			c.setup(s)
			o.Auth, o.RegistryToken = c.opts.Auth, c.opts.RegistryToken
			err := read(t, open(t, o, s.Put(data)), data, 0, 10)
			if !errors.Is(err, backend.ErrDenied) || !backend.Permanent(err) {
				t.Errorf("got %v, want a permanent ErrDenied", err)
			}
			if got := len(s.BlobRequests()); got > 2 {
				t.Errorf("asked for the blob %d times, want at most 2", got)
			}
		})
	}
}

// A token that ends under many readers is renewed once, and nobody notices.
func TestTokenIsRenewedOnce(t *testing.T) {
	testenv.LeakCheck(t)
	s, o := serve(t)
	s.RequireToken("me", "pw")
	o.Auth = auth("me", "pw")
	data := backendtest.Data(100_000, 1)
	r := open(t, o, s.Put(data))
	for round := range 4 {
		var wg sync.WaitGroup
		for i := range 30 {
			wg.Go(func() {
				if err := read(t, r, data, i*100, 1000); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got := s.TokensIssued(); got != round+1 {
			t.Errorf("round %d: %d tokens issued, want %d", round, got, round+1)
		}
		s.ExpireTokens()
	}
}

// A keychain is asked again when the registry wants new credentials.
func TestCredentialsAreLive(t *testing.T) {
	s, o := serve(t)
	s.RequireToken("me", "first")
	chain := &liveKeychain{}
	chain.set("me", "first")
	o.Keychain = chain
	data := backendtest.Data(1000, 1)
	r := open(t, o, s.Put(data))
	if err := read(t, r, data, 0, 10); err != nil {
		t.Fatal(err)
	}
	s.RequireToken("me", "second")
	s.ExpireTokens()
	if err := read(t, r, data, 0, 10); !errors.Is(err, backend.ErrDenied) {
		t.Errorf("old password: %v, want ErrDenied", err)
	}
	chain.set("me", "second")
	if err := read(t, r, data, 0, 10); err != nil {
		t.Errorf("new password: %v", err)
	}
}

type liveKeychain struct {
	config atomic.Pointer[authn.AuthConfig]
}

func (k *liveKeychain) set(user, pass string) {
	k.config.Store(&authn.AuthConfig{Username: user, Password: pass})
}

func (k *liveKeychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(*k.config.Load()), nil
}

// The docker configuration file is what finds credentials by default.
func TestDockerConfig(t *testing.T) {
	s, o := serve(t)
	s.RequireBasic("me", "pw")
	dir := t.TempDir()
	// A helper is a program that is asked for a host on its standard input.
	helper := "#!/bin/sh\nread host\n[ \"$1 $host\" = 'get " + o.Host + "' ] && exec echo '{\"Username\":\"me\",\"Secret\":\"pw\"}'\n" +
		"echo credentials not found in native keychain\nexit 1\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	o.Keychain = nil
	data := backendtest.Data(1000, 1)
	for name, config := range map[string]string{
		"file":            `{"auths":{"` + o.Host + `":{"auth":"` + auth("me", "pw") + `"}}}`,
		"helper":          `{"credHelpers":{"` + o.Host + `":"test"}}`,
		"helper for all":  `{"auths":{"` + o.Host + `":{}},"credsStore":"test"}`,
		"none of the two": `{}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		err := read(t, open(t, o, s.Put(data)), data, 0, 10)
		if refused := errors.Is(err, backend.ErrDenied); refused != (config == "{}") || err != nil && !refused {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConnectionsAreReused(t *testing.T) {
	s := faultserver.New()
	var fresh atomic.Int32
	ts := httptest.NewUnstartedServer(s)
	ts.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			fresh.Add(1)
		}
	}
	ts.Start()
	defer ts.Close()
	s.RequireToken("", "")
	data := backendtest.Data(200_000, 1)
	b, err := registry.New(registry.Options{Host: host(t, ts.URL), Repo: "r", Keychain: anonymous})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r, _ := b.Open(s.Put(data))
	missing, _ := b.Open(strings.Repeat("0", 64))
	for i := range 20 {
		if err := read(t, r, data, i*1000, 100_000); err != nil {
			t.Fatal(err)
		}
		if err := missing.ReadRange(t.Context(), make([]byte, 10), 0); !errors.Is(err, backend.ErrNotFound) {
			t.Fatal(err)
		}
		if _, err := r.Size(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// Two to begin with: the pool may dial for the token while the 401 drains.
	if got := fresh.Load(); got > 2 {
		t.Errorf("60 requests in turn made %d connections, want at most 2", got)
	}
}

// A read tells what of it has arrived, and that is right already.
func TestProgress(t *testing.T) {
	s, o := serve(t)
	data := backendtest.Data(1<<20, 1)
	r := open(t, o, s.Put(data))
	p := make([]byte, len(data)-100)
	told := 0
	ctx := backend.WithProgress(t.Context(), func(n int) {
		if n <= told || n >= len(p) || !bytes.Equal(p[:n], data[100:100+n]) {
			t.Errorf("%d bytes arrived after %d of %d, or they are wrong", n, told, len(p))
		}
		told = n
	})
	if err := r.ReadRange(ctx, p, 100); err != nil || !bytes.Equal(p, data[100:]) {
		t.Errorf("wrong bytes, or %v", err)
	}
	if told == 0 {
		t.Error("nothing was told of a megabyte on its way")
	}
}
