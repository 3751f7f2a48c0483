//go:build minio

package s3_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/backendtest"
	"github.com/rafsd/rafsd/rafs/blob/backend/backendtest/objectserver"
	"github.com/rafsd/rafsd/rafs/blob/backend/object"
	"github.com/rafsd/rafsd/rafs/blob/backend/s3"
)

func open(t *testing.T, c object.Config) *object.Bucket {
	t.Helper()
	b, err := s3.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func idOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// A real MinIO server takes what we sign and send, in one request and in parts, gives
// it back, and refuses who should be refused. Run by make interop-minio.
func TestMinIO(t *testing.T) {
	c := object.Config{
		Scheme: "http", Endpoint: objectserver.MinIO(t, "the-bucket"), Region: objectserver.MinIORegion, Bucket: "the-bucket",
		Prefix: "lay ers/ü+", AccessKeyID: objectserver.MinIOKey, AccessKeySecret: objectserver.MinIOSecret,
	}
	quick := object.PutOptions{PartSize: 5 << 20, RetryDelay: time.Nanosecond}
	put := func(t *testing.T, data []byte, o object.PutOptions) bool {
		t.Helper()
		sent, err := open(t, c).Put(t.Context(), idOf(data), bytes.NewReader(data), int64(len(data)), o)
		if err != nil {
			t.Fatal(err)
		}
		return sent
	}
	t.Run("suite", func(t *testing.T) {
		backendtest.Run(t, backendtest.Fixture{
			Put: func(t *testing.T, data []byte) string {
				put(t, data, quick)
				return idOf(data)
			},
			New: func(t *testing.T) backend.Backend { return open(t, c) },
		})
	})
	t.Run("parts", func(t *testing.T) {
		data := backendtest.Data(23<<20+7, 9)
		if !put(t, data, quick) || put(t, data, quick) {
			t.Error("want it sent once")
		}
		force := quick
		force.Force = true
		if !put(t, data, force) {
			t.Error("want it sent when forced")
		}
		r, err := open(t, c).Open(idOf(data))
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(data))
		if err := r.ReadRange(t.Context(), got, 0); err != nil || !bytes.Equal(got, data) {
			t.Errorf("read back: %v, equal: %v", err, bytes.Equal(got, data))
		}
	})
	for code, change := range map[string]func(*object.Config){
		"SignatureDoesNotMatch":        func(c *object.Config) { c.AccessKeySecret += "x" },
		"InvalidAccessKeyId":           func(c *object.Config) { c.AccessKeyID += "x" },
		"AuthorizationHeaderMalformed": func(c *object.Config) { c.Region = "mars-1" },
		"NoSuchBucket":                 func(c *object.Config) { c.Bucket = "another-bucket" },
	} {
		t.Run(code, func(t *testing.T) {
			c, data := c, []byte("data")
			change(&c)
			_, err := open(t, c).Put(t.Context(), idOf(data), bytes.NewReader(data), 4, object.PutOptions{Force: true})
			var refused *object.Error
			if !errors.As(err, &refused) || refused.Code != code || !backend.Permanent(err) || strings.Contains(err.Error(), objectserver.MinIOSecret) {
				t.Errorf("%v: want a final refusal with its code and without the secret", err)
			}
		})
	}
}
