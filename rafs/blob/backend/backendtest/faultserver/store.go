package faultserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// store keeps blobs by digest, for the registry's uploads and for our reads.
type store struct {
	mu    sync.RWMutex
	blobs map[string][]byte
}

func newStore() *store { return &store{blobs: map[string][]byte{}} }

func (s *store) get(digest string) ([]byte, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	data, ok := s.blobs[digest]
	return data, ok
}

func (s *store) put(data []byte) string {
	sum := sha256.Sum256(data)
	id := hex.EncodeToString(sum[:])
	s.putAs("sha256:"+id, data)
	return id
}

func (s *store) putAs(digest string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[digest] = bytes.Clone(data)
}

// Get implements registry.BlobHandler.
func (s *store) Get(_ context.Context, _ string, h v1.Hash) (io.ReadCloser, error) {
	data, ok := s.get(h.String())
	if !ok {
		return nil, registry.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// Stat implements registry.BlobStatHandler.
func (s *store) Stat(_ context.Context, _ string, h v1.Hash) (int64, error) {
	data, ok := s.get(h.String())
	if !ok {
		return 0, registry.ErrNotFound
	}
	return int64(len(data)), nil
}

// Put implements registry.BlobPutHandler.
func (s *store) Put(_ context.Context, _ string, h v1.Hash, rc io.ReadCloser) error {
	defer rc.Close()
	data, err := io.ReadAll(rc)
	if err != nil {
		return err
	}
	s.putAs(h.String(), data)
	return nil
}

// parseRange reads a Range header of one range with both ends.
func parseRange(header string) (first, last int64, ok bool) {
	if !strings.HasPrefix(header, "bytes=") {
		return 0, 0, false
	}
	n, err := fmt.Sscanf(header, "bytes=%d-%d", &first, &last)
	return first, last, n == 2 && err == nil && first >= 0 && first <= last
}

// serveRange answers with the asked range of data, or all of it.
func serveRange(w http.ResponseWriter, r *http.Request, data []byte) {
	w.Header().Set("Content-Type", "application/octet-stream")
	first, last, ok := parseRange(r.Header.Get("Range"))
	if !ok {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write(data)
		return
	}
	size := int64(len(data))
	if first >= size {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		return
	}
	last = min(last, size-1)
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, size))
	w.Header().Set("Content-Length", fmt.Sprint(last-first+1))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(data[first : last+1])
}
