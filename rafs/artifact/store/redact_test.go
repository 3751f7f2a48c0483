package store

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rafsd/rafsd/rafs/artifact"
)

// What a registry signs for a blob's place elsewhere, or for an upload, is as good
// as a password: no error shows it.
func TestErrorsShowNoSignatures(t *testing.T) {
	const secret = "X-Amz-Signature=swordfish"
	digest := hashOf([]byte("data"))
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/v2/":
		case strings.HasSuffix(r.URL.Path, "/manifests/v1"):
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			io.WriteString(w, `{"schemaVersion":2}`)
		case r.Method == http.MethodHead:
			w.WriteHeader(http.StatusNotFound)
		case strings.HasSuffix(r.URL.Path, "/uploads/"):
			w.Header().Set("Location", server.URL+"/elsewhere?"+secret)
			w.WriteHeader(http.StatusAccepted)
		case r.URL.RawQuery == "":
			http.Redirect(w, r, server.URL+"/elsewhere?"+secret, http.StatusTemporaryRedirect)
		default:
			panic(http.ErrAbortHandler)
		}
	}))
	defer server.Close()
	name := strings.TrimPrefix(server.URL, "http://") + "/a:v1"
	src, err := OpenSource(t.Context(), name, artifact.Options{}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	d := v1.Descriptor{Digest: digest, Size: 4}
	_, readErr := src.Blob(t.Context(), d, 0)
	dst, err := OpenTarget(t.Context(), name, artifact.Options{}, Push{Retries: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	_, pushErr := dst.Blob(t.Context(), d, func(context.Context, int64) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("data")), nil
	})
	for what, err := range map[string]error{"read": readErr, "push": pushErr} {
		if err == nil || strings.Contains(err.Error(), "swordfish") {
			t.Errorf("%s: got %v, want an error without the signature", what, err)
		}
	}
}
