package artifact

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// documents is a folder of manifests, indexes and configurations, each named by its
// digest and verified by it when it is read: a reference by digest needs no registry
// to be resolved a second time. Those of an image are kept once all of it was found
// good. A nil one has and keeps nothing.
type documents struct {
	dir string
	new []document
}

type document struct {
	digest v1.Hash
	kind   string
	data   []byte
}

// Kinds of documents. They are part of the name, since the same bytes could
// otherwise be taken for an index by one reader and for an image by another
// (CVE-2021-41190).
const (
	imageDocument  = "image.json"
	indexDocument  = "index.json"
	configDocument = "config.json"
)

func (d *documents) path(digest v1.Hash, kind string) string {
	return filepath.Join(d.dir, digest.Hex+"."+kind)
}

// load returns the document, or false if it is not there, whole and unharmed.
func (d *documents) load(digest v1.Hash, kind string, limit int64) ([]byte, bool) {
	if d == nil || digest.Algorithm != "sha256" || len(digest.Hex) != 2*sha256.Size {
		return nil, false
	}
	f, err := os.Open(d.path(digest, kind))
	if err != nil {
		return nil, false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	sum := sha256.Sum256(data)
	return data, err == nil && int64(len(data)) <= limit && hex.EncodeToString(sum[:]) == digest.Hex
}

// add notes a document that was verified and did not come from the folder.
func (d *documents) add(digest v1.Hash, kind string, data []byte) {
	if d != nil && digest.Algorithm == "sha256" {
		d.new = append(d.new, document{digest, kind, data})
	}
}

// keep writes what was noted. What cannot be kept is fetched again.
func (d *documents) keep() {
	for _, doc := range d.new {
		tmp, err := os.CreateTemp(d.dir, "document-*.tmp")
		if err != nil {
			return
		}
		_, err = tmp.Write(doc.data)
		if tmp.Close() != nil || err != nil || os.Rename(tmp.Name(), d.path(doc.digest, doc.kind)) != nil {
			_ = os.Remove(tmp.Name())
		}
	}
}
