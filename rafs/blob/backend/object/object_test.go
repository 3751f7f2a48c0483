package object_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/backendtest"
	"github.com/rafsd/rafsd/rafs/blob/backend/backendtest/objectserver"
	"github.com/rafsd/rafsd/rafs/blob/backend/object"
	"github.com/rafsd/rafsd/rafs/blob/backend/oss"
	"github.com/rafsd/rafsd/rafs/blob/backend/s3"
)

const (
	keyID  = "AKIDEXAMPLE"
	secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
)

// store is a fake and how to reach it.
type store struct {
	*objectserver.Server
	config object.Config
	open   func(object.Config) (*object.Bucket, error)
}

// stores are all dialects, each over a server of its own.
func stores(t *testing.T) map[string]*store {
	t.Helper()
	return map[string]*store{
		"s3":     serve(t, s3.New, &objectserver.Server{Kind: objectserver.S3, Region: "eu-test-1"}, object.Config{Region: "eu-test-1"}),
		"oss v1": serve(t, oss.New, &objectserver.Server{Kind: objectserver.OSS}, object.Config{Endpoint: "oss.test"}),
		"oss v4": serve(t, oss.New, &objectserver.Server{Kind: objectserver.OSS, Region: "cn-hangzhou"},
			object.Config{Endpoint: "oss-cn-hangzhou-internal.aliyuncs.com"}),
		"oss by address": serve(t, oss.New, &objectserver.Server{Kind: objectserver.OSS, Region: "r-1"}, object.Config{Region: "r-1"}),
	}
}

// serve runs a server on loopback. Names of hosts lead to it, whatever they are.
func serve(t *testing.T, open func(object.Config) (*object.Bucket, error), s *objectserver.Server, c object.Config) *store {
	t.Helper()
	s.Bucket, s.Key, s.Secret, s.MinPart = "the-bucket", keyID, secret, partSize
	ts := httptest.NewServer(s)
	t.Cleanup(ts.Close)
	at := strings.TrimPrefix(ts.URL, "http://")
	c.Scheme, c.Bucket, c.Prefix, c.AccessKeyID, c.AccessKeySecret = "http", s.Bucket, "lay ers/ü+", keyID, secret
	if c.Endpoint == "" {
		c.Endpoint = at
	} else {
		c.Dial = dialer(at)
	}
	return &store{s, c, open}
}

// dialer connects to one address, whatever it is asked for.
func dialer(at string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, at)
	}
}

func (s *store) bucket(t *testing.T) *object.Bucket {
	t.Helper()
	b, err := s.open(s.config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// fault sets what goes wrong from now on.
func (s *store) fault(f func(r *http.Request, n int) *objectserver.Fault) { s.SetFault(f) }

func idOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// partSize is what the fakes take; minimums of real stores are larger.
const partSize = 100 << 10

var quick = object.PutOptions{PartSize: partSize, RetryDelay: time.Nanosecond}

func TestSuite(t *testing.T) {
	testenv.LeakCheck(t)
	for name, s := range stores(t) {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, backendtest.Fixture{
				Put: func(t *testing.T, data []byte) string {
					if _, err := s.bucket(t).Put(t.Context(), idOf(data), bytes.NewReader(data), int64(len(data)), quick); err != nil {
						t.Fatal(err)
					}
					return idOf(data)
				},
				New: func(t *testing.T) backend.Backend { return s.bucket(t) },
			})
		})
	}
}

// What has a name of its own is put under that, which a blob never is.
func TestPutNamed(t *testing.T) {
	for name, s := range stores(t) {
		t.Run(name, func(t *testing.T) {
			data, o := backendtest.Data(partSize+1, 1), quick
			put := func() error {
				_, err := s.bucket(t).Put(t.Context(), "app.meta", bytes.NewReader(data), int64(len(data)), o)
				return err
			}
			if err := put(); !errors.Is(err, blob.ErrDigest) {
				t.Errorf("a blob with a name: got %v, want %v", err, blob.ErrDigest)
			}
			o.Named = true
			if err := put(); err != nil {
				t.Error(err)
			}
			if got, _ := s.Object("lay ers/ü+app.meta"); !bytes.Equal(got, data) {
				t.Errorf("the object has %d other bytes", len(got))
			}
		})
	}
}

// What is put is there, under prefix and id, once, and is not sent again.
func TestPut(t *testing.T) {
	for name, s := range stores(t) {
		t.Run(name, func(t *testing.T) {
			b := s.bucket(t)
			for _, size := range []int{0, 1, partSize, partSize + 1, 7*partSize + 3} {
				data := backendtest.Data(size, uint64(size))
				id := idOf(data)
				var told []int64
				o := quick
				o.Progress = func(n int64) { told = append(told, n) }
				sent, err := b.Put(t.Context(), id, bytes.NewReader(data), int64(size), o)
				if err != nil || !sent {
					t.Fatalf("%d bytes: %v, sent %v", size, err, sent)
				}
				if got, _ := s.Object("lay ers/ü+" + id); !bytes.Equal(got, data) {
					t.Errorf("%d bytes: the object has %d others", size, len(got))
				}
				if !slices.IsSorted(told) || size > 0 && (len(told) == 0 || told[len(told)-1] != int64(size)) {
					t.Errorf("%d bytes: progress %v", size, told)
				}
				before := len(s.Requests())
				if sent, err := b.Put(t.Context(), id, bytes.NewReader(data), int64(size), quick); err != nil || sent {
					t.Errorf("%d bytes again: %v, sent %v", size, err, sent)
				}
				if n := len(s.Requests()) - before; n != 1 {
					t.Errorf("%d bytes again: %d requests, want 1", size, n)
				}
				// One of another size is replaced, and so is one of the same if forced.
				s.Server.Put("lay ers/ü+"+id, append(slices.Clone(data), 1))
				if sent, err := b.Put(t.Context(), id, bytes.NewReader(data), int64(size), quick); err != nil || !sent {
					t.Errorf("%d bytes over a longer object: %v, sent %v", size, err, sent)
				}
				force := quick
				force.Force = true
				if sent, err := b.Put(t.Context(), id, bytes.NewReader(data), int64(size), force); err != nil || !sent {
					t.Errorf("%d bytes forced: %v, sent %v", size, err, sent)
				}
			}
			if n := s.Uploads(); n != 0 {
				t.Errorf("%d uploads are left over", n)
			}
		})
	}
}

// A request that fails on its way is sent again, and nothing but the right bytes
// becomes an object.
func TestPutAgain(t *testing.T) {
	data := backendtest.Data(3*partSize-1, 1)
	part2 := func(r *http.Request) bool { return r.URL.Query().Get("partNumber") == "2" }
	completing := func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("uploadId") }
	for name, c := range map[string]struct {
		match func(*http.Request) bool
		fault objectserver.Fault
	}{
		"busy":                   {part2, objectserver.Fault{Status: 503, Code: "SlowDown"}},
		"cut":                    {part2, objectserver.Fault{Cut: 1 << 10}},
		"lost answer":            {part2, objectserver.Fault{Lost: true}},
		"too slow":               {part2, objectserver.Fault{Status: 400, Code: "RequestTimeout"}},
		"silent":                 {part2, objectserver.Fault{Silent: true}},
		"upload gone":            {part2, objectserver.Fault{Status: 404, Code: "NoSuchUpload"}},
		"initiate fails":         {func(r *http.Request) bool { return r.URL.Query().Has("uploads") }, objectserver.Fault{Status: 500}},
		"head fails":             {func(r *http.Request) bool { return r.Method == http.MethodHead }, objectserver.Fault{Status: 500}},
		"complete fails":         {completing, objectserver.Fault{Status: 500, Code: "InternalError"}},
		"complete fails late":    {completing, objectserver.Fault{Late: true, Code: "InternalError"}},
		"completed, not told":    {completing, objectserver.Fault{Lost: true}},
		"gone when it completes": {completing, objectserver.Fault{Status: 404, Code: "NoSuchUpload"}},
	} {
		for kind, s := range stores(t) {
			t.Run(name+"/"+kind, func(t *testing.T) {
				s.config.WriteTimeout = 200 * time.Millisecond
				var failed atomic.Bool
				s.fault(func(r *http.Request, _ int) *objectserver.Fault {
					if !c.match(r) || failed.Swap(true) {
						return nil
					}
					return &c.fault
				})
				o := quick
				o.Parallel = 1
				if _, err := s.bucket(t).Put(t.Context(), idOf(data), bytes.NewReader(data), int64(len(data)), o); err != nil || !failed.Load() {
					t.Fatalf("put: %v, failed on the way: %v", err, failed.Load())
				}
				if got, _ := s.Object("lay ers/ü+" + idOf(data)); !bytes.Equal(got, data) {
					t.Errorf("the object has %d other bytes", len(got))
				}
			})
		}
	}
}

// A large body waits until the store wants it: a refusal costs little.
func TestLargeBodyIsAskedFor(t *testing.T) {
	for name, s := range stores(t) {
		data := backendtest.Data(3<<20, 1)
		o := quick
		o.PartSize = 4 << 20
		s.fault(func(r *http.Request, _ int) *objectserver.Fault {
			if r.Method == http.MethodPut {
				return &objectserver.Fault{Status: 403, Code: "AccessDenied", Unread: true}
			}
			return nil
		})
		o.Progress = func(int64) { t.Errorf("%s: something was sent", name) }
		if _, err := s.bucket(t).Put(t.Context(), idOf(data), bytes.NewReader(data), 3<<20, o); !errors.Is(err, backend.ErrDenied) {
			t.Errorf("%s: %v, want ErrDenied", name, err)
		}
		s.fault(nil)
		o.Progress = nil
		if _, err := s.bucket(t).Put(t.Context(), idOf(data), bytes.NewReader(data), 3<<20, o); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A body that changes on its way is refused by the store.
func TestBodyIsChecked(t *testing.T) {
	for name, s := range stores(t) {
		for _, size := range []int{1000, 2 * partSize} {
			data := backendtest.Data(size, 1)
			s.fault(func(r *http.Request, _ int) *objectserver.Fault {
				if r.Method == http.MethodPut {
					return &objectserver.Fault{Flip: true}
				}
				return nil
			})
			_, err := s.bucket(t).Put(t.Context(), idOf(data), bytes.NewReader(data), int64(size), quick)
			if !errors.Is(err, backend.ErrDenied) || len(s.Objects()) != 0 || s.Uploads() != 0 {
				t.Errorf("%s, %d bytes: %v, objects %v, %d uploads: want a refusal and nothing left", name, size, err, s.Objects(), s.Uploads())
			}
		}
	}
}

// What cannot be sent leaves nothing behind, and says what and where.
func TestPutFails(t *testing.T) {
	data := backendtest.Data(3*partSize-1, 1)
	for name, s := range stores(t) {
		t.Run(name, func(t *testing.T) {
			b := s.bucket(t)
			put := func(o object.PutOptions) error {
				_, err := b.Put(t.Context(), idOf(data), bytes.NewReader(data), int64(len(data)), o)
				return err
			}
			s.fault(func(r *http.Request, _ int) *objectserver.Fault {
				if r.URL.Query().Get("partNumber") == "3" {
					return &objectserver.Fault{Status: 503, Code: "SlowDown"}
				}
				return nil
			})
			err := put(quick)
			if !errors.Is(err, backend.ErrUnavailable) || len(s.Objects()) != 0 || s.Uploads() != 0 {
				t.Errorf("%v, objects %v, %d uploads: want ErrUnavailable and nothing left", err, s.Objects(), s.Uploads())
			}
			for _, want := range []string{"the-bucket", idOf(data), "part 3 of 3", "SlowDown", "status 503", s.config.Endpoint} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			s.fault(func(r *http.Request, _ int) *objectserver.Fault {
				if r.URL.Query().Get("partNumber") == "3" || r.Method == http.MethodDelete {
					return &objectserver.Fault{Status: 403, Code: "AccessDenied"}
				}
				return nil
			})
			if err := put(quick); !errors.Is(err, backend.ErrDenied) || !strings.Contains(err.Error(), "stays in the bucket") {
				t.Errorf("%v, want ErrDenied and what stays", err)
			}
		})
	}
}

// Bytes that are not what the id says are not sent.
func TestPutOther(t *testing.T) {
	for _, s := range stores(t) {
		data := backendtest.Data(1000, 1)
		_, err := s.bucket(t).Put(t.Context(), idOf(data[1:]), bytes.NewReader(data), 1000, quick)
		if !errors.Is(err, blob.ErrDigest) || len(s.Objects()) != 0 {
			t.Errorf("%v, objects %v: want ErrDigest and none", err, s.Objects())
		}
		if _, err := s.bucket(t).Put(t.Context(), idOf(data), bytes.NewReader(data[1:]), 1000, quick); err == nil || len(s.Objects()) != 0 {
			t.Errorf("file that is too short: %v, objects %v: want an error and none", err, s.Objects())
		}
	}
}

// No refusal tells a secret, and each says what is wrong.
func TestRefusals(t *testing.T) {
	data := backendtest.Data(1000, 1)
	for name, change := range map[string]func(*object.Config){
		"wrong secret": func(c *object.Config) { c.AccessKeySecret = secret + "x" },
		"wrong key":    func(c *object.Config) { c.AccessKeyID = "OTHER" },
		"no key":       func(c *object.Config) { c.AccessKeyID, c.AccessKeySecret = "", "" },
		"wrong bucket": func(c *object.Config) { c.Bucket = "another-bucket" },
	} {
		for kind, s := range stores(t) {
			t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
			t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
			change(&s.config)
			_, err := s.bucket(t).Put(t.Context(), idOf(data), bytes.NewReader(data), 1000, object.PutOptions{Force: true, RetryDelay: 1})
			var refused *object.Error
			if !errors.As(err, &refused) || refused.Code == "" || !backend.Permanent(err) {
				t.Errorf("%s, %s: %v, want a final refusal with its code", name, kind, err)
				continue
			}
			if s := err.Error(); strings.Contains(s, secret) || strings.Contains(s, "secret string") || strings.Contains(s, "Signature=") {
				t.Errorf("%s, %s: %q tells a secret", name, kind, s)
			}
		}
	}
}

// The end of the caller's context ends a put, and takes back what was sent.
func TestPutCancelled(t *testing.T) {
	testenv.LeakCheck(t)
	for name, s := range stores(t) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			s.fault(func(r *http.Request, _ int) *objectserver.Fault {
				if r.URL.Query().Get("partNumber") != "2" {
					return nil
				}
				cancel()
				return &objectserver.Fault{Silent: true}
			})
			data := backendtest.Data(3*partSize-1, 1)
			_, err := s.bucket(t).Put(ctx, idOf(data), bytes.NewReader(data), int64(len(data)), quick)
			if !errors.Is(err, ctx.Err()) || len(s.Objects()) != 0 || s.Uploads() != 0 {
				t.Errorf("%v, objects %v, %d uploads: want the end of the context and nothing left", err, s.Objects(), s.Uploads())
			}
		})
	}
}

func TestConfig(t *testing.T) {
	good := object.Config{Endpoint: "store.example:9000", Region: "r", Bucket: "bucket"}
	for name, change := range map[string]func(*object.Config){
		"scheme":            func(c *object.Config) { c.Scheme = "ftp" },
		"endpoint":          func(c *object.Config) { c.Endpoint = "host/path" },
		"endpoint, user":    func(c *object.Config) { c.Endpoint = "https://me:pw@host" },
		"no bucket":         func(c *object.Config) { c.Bucket = "" },
		"bucket":            func(c *object.Config) { c.Bucket = "a/b" },
		"half a credential": func(c *object.Config) { c.AccessKeyID = "id" },
		"prefix, dots":      func(c *object.Config) { c.Prefix = "a/../b" },
		"prefix, control":   func(c *object.Config) { c.Prefix = "a\n" },
		"prefix, long":      func(c *object.Config) { c.Prefix = strings.Repeat("a", 1000) },
		"ca":                func(c *object.Config) { c.CAFiles = []string{"/nonexistent"} },
	} {
		for kind, open := range map[string]func(object.Config) (*object.Bucket, error){"s3": s3.New, "oss": oss.New} {
			if b, err := open(good); err != nil {
				t.Errorf("%s: %v", kind, err)
			} else {
				b.Close()
			}
			c := good
			change(&c)
			if _, err := open(c); err == nil || strings.Contains(err.Error(), "pw") {
				t.Errorf("%s, %s: %v, want an error without the password", kind, name, err)
			}
		}
	}
	if _, err := s3.New(object.Config{Endpoint: "h", Bucket: "bucket"}); err == nil {
		t.Error("s3 without a region: want an error")
	}
}

// A store that sends us elsewhere is asked no more.
func TestMoved(t *testing.T) {
	for name, s := range stores(t) {
		s.fault(func(*http.Request, int) *objectserver.Fault {
			return &objectserver.Fault{Status: 301, Code: "PermanentRedirect", Header: http.Header{
				"Location": {"http://elsewhere.test/"}, "X-Amz-Bucket-Region": {"mars-1"},
			}}
		})
		r, err := s.bucket(t).Open(idOf(nil))
		if err != nil {
			t.Fatal(err)
		}
		err = r.ReadRange(t.Context(), make([]byte, 1), 0)
		if !errors.Is(err, backend.ErrDenied) || !strings.Contains(err.Error(), "mars-1") || len(s.Requests()) != 1 {
			t.Errorf("%s: %v after %d requests, want a final error with the region after 1", name, err, len(s.Requests()))
		}
	}
}
