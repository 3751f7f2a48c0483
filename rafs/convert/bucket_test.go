package convert

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/backendtest/objectserver"
	"github.com/rafsd/rafsd/rafs/blob/backend/object"
	"github.com/rafsd/rafsd/rafs/blob/backend/oss"
	"github.com/rafsd/rafsd/rafs/blob/backend/s3"
	"github.com/rafsd/rafsd/rafs/convert/verify"
)

// fakeBucket runs a fake store and opens its bucket.
func fakeBucket(t *testing.T, kind objectserver.Kind) (*objectserver.Server, *object.Bucket) {
	t.Helper()
	s := &objectserver.Server{Kind: kind, Bucket: "images", Region: "r-1", Key: "id", Secret: "secret"}
	ts := httptest.NewServer(s)
	t.Cleanup(ts.Close)
	open := s3.New
	if kind == objectserver.OSS {
		open = oss.New
	}
	b, err := open(object.Config{
		Endpoint: ts.URL, Region: "r-1", Bucket: "images", Prefix: "rafs/", AccessKeyID: "id", AccessKeySecret: "secret",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return s, b
}

// intoBucket converts an image into a bucket: the manifest has the bootstrap alone,
// the blobs are in the bucket, and together they are the source again.
func intoBucket(t *testing.T, oci string, o Options) *Result {
	t.Helper()
	rafs := "oci:" + t.TempDir()
	o.Source, o.Target = oci, rafs
	result, err := Convert(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	_, m := manifestOf(t, openImage(t, rafs), nil)
	if len(m.Layers) != 1 || len(result.Blobs) == 0 {
		t.Errorf("%d layers in the manifest, %d blobs: want the bootstrap, and some", len(m.Layers), len(result.Blobs))
	}
	verified(t, oci, rafs, verify.Options{Backend: o.Bucket})
	return result
}

// writes counts the objects that were stored.
func writes(s *objectserver.Server) (n int) {
	for _, r := range s.Requests() {
		if r.Method == http.MethodPut && r.Status == http.StatusOK {
			n++
		}
	}
	return n
}

// Every flavour, in every kind of store. A second time nothing is sent, unless forced.
func TestBucket(t *testing.T) {
	oci := t.TempDir()
	newImage(t, "gzip", fixtureTars(t, layerTars...)...).layout(t, oci, "")
	for name, o := range flavours {
		if o.Reference {
			continue
		}
		t.Run(name, func(t *testing.T) {
			kind := objectserver.S3
			if o.Format.Version == 5 || o.Format.BatchSize > 0 {
				kind = objectserver.OSS
			}
			s, b := fakeBucket(t, kind)
			o.Bucket = &Bucket{Bucket: b}
			first := intoBucket(t, oci, o)
			want := []string{}
			for _, id := range first.Blobs {
				want = append(want, "rafs/"+id)
			}
			slices.Sort(want)
			if got := s.Objects(); !slices.Equal(got, want) {
				t.Errorf("objects %v, want %v", got, want)
			}
			o.Source, o.Target = oci, "oci:"+t.TempDir()
			for force, sent := range map[bool]int{false: 0, true: len(want)} {
				o.Bucket.Force = force
				before := writes(s)
				if second, err := Convert(t.Context(), o); err != nil || second.Digest != first.Digest || writes(s)-before != sent {
					t.Errorf("second time, forced %v: %v, %v, sent %d, want %s and %d", force, second, err, writes(s)-before, first.Digest, sent)
				}
			}
		})
	}
}

// Blobs of a dictionary are copied into the bucket, too, unless they are there.
func TestBucketDictionary(t *testing.T) {
	oci, dict := t.TempDir(), "oci:"+t.TempDir()
	newImage(t, "gzip", fixtureTars(t, layerTars...)...).layout(t, oci, "")
	if _, err := Convert(t.Context(), Options{Source: oci, Target: dict}); err != nil {
		t.Fatal(err)
	}
	s, b := fakeBucket(t, objectserver.S3)
	o := Options{Dict: dict, Bucket: &Bucket{Bucket: b}}
	if r := intoBucket(t, oci, o); len(s.Objects()) != len(r.Blobs) {
		t.Errorf("objects %v, want those of the %d blobs", s.Objects(), len(r.Blobs))
	}
	before := writes(s)
	if intoBucket(t, oci, o); writes(s) != before {
		t.Error("what was there has been sent again")
	}
}

// A store that fails leaves no image, and nothing in the bucket without a name of its
// own; the next run goes on from the layers.
func TestBucketFails(t *testing.T) {
	oci, rafs := t.TempDir(), "oci:"+t.TempDir()
	newImage(t, "gzip", fixtureTars(t, layerTars...)...).layout(t, oci, "")
	s, b := fakeBucket(t, objectserver.S3)
	s.SetFault(func(r *http.Request, _ int) *objectserver.Fault {
		if r.Method == http.MethodPut {
			return &objectserver.Fault{Status: 503, Code: "SlowDown"}
		}
		return nil
	})
	o := Options{
		Source: oci, Target: rafs, Bucket: &Bucket{Bucket: b}, StateDir: t.TempDir(), Push: store.Push{Retries: 1, RetryDelay: time.Nanosecond},
	}
	_, err := Convert(t.Context(), o)
	if !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), "images") || !strings.Contains(err.Error(), again) {
		t.Errorf("%v: want ErrUnavailable, the bucket and what to do", err)
	}
	if src, err := store.OpenSource(t.Context(), rafs, artifact.Options{}, ""); err == nil {
		src.Close()
		t.Error("there is an image")
	}
	if len(s.Objects()) != 0 {
		t.Errorf("objects %v, want none", s.Objects())
	}
	s.SetFault(nil)
	result, err := Convert(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range result.Layers {
		if !l.Resumed {
			t.Errorf("layer %s was converted again", l.Source)
		}
	}
	verified(t, oci, rafs, verify.Options{Backend: b})
}
