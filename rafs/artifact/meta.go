package artifact

import (
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// metaSuffix ends the names of files with the chunk information of a blob
// (nydus-snapshotter pkg/converter/convert_unix.go).
const metaSuffix = ".blob.meta"

// metaFiles keeps the chunk information of blobs that lies beside a bootstrap in
// its layer, as BLOB.blob.meta. A node can do without, so that nothing here fails:
// what cannot be kept is fetched from the blob when it is needed, and whoever uses
// it does not trust it.
type metaFiles struct {
	dir string
	ids []string // of the blobs that the image has
	tmp map[string]string
}

// add keeps a file under a name that does not count yet.
func (m *metaFiles) add(name string, r io.Reader) {
	id, ok := strings.CutSuffix(path.Base(name), metaSuffix)
	if !ok || path.Dir(name) != path.Dir(BootstrapFile) || !slices.Contains(m.ids, id) || m.tmp[id] != "" {
		return
	}
	f, err := os.CreateTemp(m.dir, "meta-*.tmp")
	if err != nil {
		return
	}
	_, err = io.Copy(f, r)
	if cerr := f.Close(); err != nil || cerr != nil {
		_ = os.Remove(f.Name())
		return
	}
	if m.tmp == nil {
		m.tmp = map[string]string{}
	}
	m.tmp[id] = f.Name()
}

// keep gives the files their names: the layer was found to be the right one.
func (m *metaFiles) keep() {
	for id, tmp := range m.tmp {
		if os.Rename(tmp, filepath.Join(m.dir, id+metaSuffix)) == nil {
			delete(m.tmp, id)
		}
	}
}

// discard removes what was not kept.
func (m *metaFiles) discard() {
	for _, tmp := range m.tmp {
		_ = os.Remove(tmp)
	}
}
