package convert

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// state is a folder with layers that conversions have done: for each a blob, if it
// has one, and a file with all else that is known of it. Files get their names when
// they are whole and on the disk, so there is nothing to repair after a kill. What
// is loaded is verified by SHA-256, against accidents: the folder is the user's.
type state struct {
	dir string

	mu   sync.Mutex
	keys map[string]bool // of this conversion
}

const (
	// StateLayers is the folder in Options.StateDir.
	StateLayers = "layers"

	stateBlob  = ".blob" // behind a key, as stateLayer
	stateLayer = ".layer"
	unfinished = "unfinished-"
	// stateAge is how long a layer is kept that nobody came back for.
	stateAge = 7 * 24 * time.Hour
	// stateFormat changes whenever what is kept, or how layers are made, changes.
	stateFormat = 1
)

// openState opens the folder, which nobody but its owner may write to.
func openState(dir string) (*state, error) {
	dir = filepath.Join(dir, StateLayers)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !st.IsDir() || st.Mode().Perm()&0o022 != 0 || ok && int(owner.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("state folder %s: mode %v, owner %d: want a folder that user %d alone may write to", dir, st.Mode(), owner.Uid, os.Geteuid())
	}
	s := &state{dir: dir, keys: map[string]bool{}}
	s.expire()
	return s, nil
}

// own tells whether a file of the folder is one that conversions write. The user
// may have others there.
func own(name string) bool {
	if strings.HasPrefix(name, unfinished) {
		return true
	}
	key, ok := strings.CutSuffix(name, stateBlob)
	if !ok {
		key, ok = strings.CutSuffix(name, stateLayer)
	}
	sum, err := hex.DecodeString(key)
	return ok && err == nil && len(sum) == sha256.Size && key == strings.ToLower(key)
}

// expire removes what is old, and the temporary files of those who were killed.
func (s *state) expire() {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !own(e.Name()) {
			continue
		}
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > stateAge {
			_ = os.Remove(filepath.Join(s.dir, e.Name()))
		}
	}
}

// forget removes the layers of this conversion, which has succeeded.
func (s *state) forget() {
	for key := range s.keys {
		_ = os.Remove(s.path(key, stateLayer))
		_ = os.Remove(s.path(key, stateBlob))
	}
}

func (s *state) path(key, suffix string) string { return filepath.Join(s.dir, key+suffix) }

// key names a layer by everything that its blob and its tree are functions of.
func (c *conversion) key(i int) (string, error) {
	src, f := &c.source.layers[i], c.opts.Format
	dict := ""
	if c.dict != nil {
		super := c.dict.im.Super()
		dict = hex.EncodeToString(super.SHA256[:])
	}
	raw, err := json.Marshal(map[string]any{
		"state": stateFormat, "program": program(), "layer": src.desc.Digest, "diff": src.diffID, "number": c.number(i), "dict": dict,
		"version": f.Version, "chunk": f.ChunkSize, "batch": f.BatchSize, "packed": c.opts.packed(),
		"compressor": f.Compressor.String(), "digester": f.Digester.String(), "reference": c.opts.Reference, "limits": c.opts.Limits,
	})
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:]), err
}

// program tells builds of this program apart: another one may make other bytes of
// the same layer.
var program = sync.OnceValue(func() []string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil
	}
	parts := []string{info.Main.Version, info.Main.Sum, info.GoVersion}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" || s.Key == "vcs.modified" {
			parts = append(parts, s.Value)
		}
	}
	return parts
})

// blobFile opens the file that a layer's blob goes to. Where it can, it has no name
// yet, but can be given one.
func (c *conversion) blobFile() (*os.File, error) {
	if c.state == nil {
		return c.opts.tempFile()
	}
	fd, err := unix.Open(c.state.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), filepath.Join(c.state.dir, "unnamed")), nil
	}
	f, err := os.CreateTemp(c.state.dir, unfinished+"*") // expire removes it after a kill
	if err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	return f, nil
}

// keep names what was made of a layer, so that it is found again.
func (c *conversion) keep(i int, l *layer) error {
	if c.state == nil || c.cache != nil { // a cache keeps layers in a way of its own
		return nil
	}
	key, err := c.key(i)
	if err != nil {
		return err
	}
	c.state.mu.Lock()
	c.state.keys[key] = true
	c.state.mu.Unlock()
	if l.file != nil {
		if err := c.state.name(l.file, key+stateBlob); err != nil {
			return fmt.Errorf("state folder: %w", err)
		}
	}
	f, err := c.blobFile()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := l.saveTo(f); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	if err := c.state.name(f, key+stateLayer); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	return nil
}

// saveTo writes what is kept of a layer, and behind it the SHA-256 of that.
func (l *layer) saveTo(f *os.File) error {
	h := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(f, h), 64<<10)
	if err := l.save(out); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err := f.Write(h.Sum(nil))
	return err
}

// name gives a file its name, in place of one that somebody else left.
func (s *state) name(f *os.File, name string) error {
	if err := f.Sync(); err != nil {
		return err
	}
	target := filepath.Join(s.dir, name)
	if strings.HasPrefix(filepath.Base(f.Name()), unfinished) {
		return os.Rename(f.Name(), target)
	}
	temp := filepath.Join(s.dir, unfinished+rand.Text()) // a link replaces nothing, and others may be at it
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, temp, unix.AT_SYMLINK_FOLLOW); err != nil {
		return err
	}
	if err := os.Rename(temp, target); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return nil
}

// resume finds a layer that was done before; nil if there is none, or if what is
// there is damaged.
func (c *conversion) resume(i int) (*layer, error) {
	if c.state == nil || c.cache != nil {
		return nil, nil
	}
	key, err := c.key(i)
	if err != nil {
		return nil, err
	}
	l, err := c.load(key)
	if err != nil {
		return nil, nil // it is made anew
	}
	c.state.mu.Lock()
	c.state.keys[key] = true
	c.state.mu.Unlock()
	size := c.source.layers[i].desc.Size
	c.tell(Event{Layer: i, Digest: c.digest(i), Stage: StageFound, Done: size, Total: size})
	return l, nil
}

var errState = errors.New("not what was kept")

// load reads a layer that was kept, once it is known to be whole.
func (c *conversion) load(key string) (l *layer, err error) {
	f, err := os.Open(c.state.path(key, stateLayer))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() < sha256.Size {
		return nil, errors.Join(errState, err)
	}
	n := st.Size() - sha256.Size
	var want [sha256.Size]byte
	if _, err := f.ReadAt(want[:], n); err != nil {
		return nil, err
	}
	if err := verifyFile(io.NewSectionReader(f, 0, n), sha256.New(), want[:]); err != nil {
		return nil, err
	}
	l = &layer{resumed: true}
	defer func() {
		if err != nil {
			l.close()
			l = nil
		}
	}()
	if err := l.load(bufio.NewReaderSize(io.NewSectionReader(f, 0, n), 64<<10), c.opts.WorkDir); err != nil {
		return l, err
	}
	if l.info == nil {
		return l, nil
	}
	if l.file, err = os.Open(c.state.path(key, stateBlob)); err != nil {
		return l, err
	}
	if want, err := hex.DecodeString(l.info.Object.ID); err != nil {
		return l, err
	} else {
		return l, verifyFile(io.NewSectionReader(l.file, 0, l.info.Object.Size+1), sha256.New(), want)
	}
}

func verifyFile(r io.Reader, h hash.Hash, want []byte) error {
	if _, err := io.Copy(h, r); err != nil {
		return err
	}
	if !bytes.Equal(h.Sum(nil), want) {
		return errState
	}
	return nil
}

// kept is what a layer's file begins with.
type kept struct {
	Entries, DroppedXattrs int
	Bytes                  int64
	// The blob; empty if the layer has none.
	ID           string
	Object       write.Object
	Entry        []byte // as a v6 blob table has it
	PrefetchSize uint32
	HasContexts  bool
	Contexts     uint32
	ContextBytes uint64
}

// save writes all that is known of a layer but its blob.
func (l *layer) save(w io.Writer) error {
	k := kept{Entries: l.entries, DroppedXattrs: l.droppedXattrs, Bytes: l.bytes}
	if l.info != nil {
		k.ID, k.Object, k.PrefetchSize = l.info.ID, l.info.Object, l.info.PrefetchSize
		k.Entry = l.info.Entry.Append(nil)
		if l.info.Contexts != nil {
			k.HasContexts, k.Contexts, k.ContextBytes = true, l.info.Contexts.Count(), l.info.Contexts.Size()
		}
	}
	head, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if _, err := w.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(head))), head...)); err != nil {
		return err
	}
	if l.info != nil {
		if err := l.table.Save(w); err != nil {
			return err
		}
		if l.info.Contexts != nil {
			if _, err := l.info.Contexts.WriteTo(w); err != nil {
				return err
			}
		}
	}
	return l.tree.Save(w)
}

// maxKept bounds the beginning of a layer's file.
const maxKept = 1 << 16

func (l *layer) load(r io.Reader, tempDir string) error {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint32(size[:])
	if n > maxKept {
		return errState
	}
	head := make([]byte, n)
	if _, err := io.ReadFull(r, head); err != nil {
		return err
	}
	var k kept
	if err := json.Unmarshal(head, &k); err != nil {
		return err
	}
	l.entries, l.droppedXattrs, l.bytes = k.Entries, k.DroppedXattrs, k.Bytes
	if k.ID != "" {
		if err := l.loadBlob(r, &k, tempDir); err != nil {
			return err
		}
	}
	var err error
	l.tree, err = tree.LoadLayer(r, tree.BuilderOptions{TempDir: tempDir})
	return err
}

func (l *layer) loadBlob(r io.Reader, k *kept, tempDir string) error {
	entry, err := v6.DecodeBlobEntry(k.Entry)
	if err != nil {
		return err
	}
	if l.table, err = chunk.LoadTable(r, tempDir); err != nil {
		return err
	}
	l.info = &write.BlobInfo{ID: k.ID, Object: k.Object, Table: l.table, Entry: entry, PrefetchSize: k.PrefetchSize}
	if !k.HasContexts {
		return nil
	}
	contexts, err := loadContexts(r, k, tempDir)
	if err != nil {
		return err
	}
	l.info.Contexts, l.contexts = contexts, contexts
	return nil
}

// fileContexts are contexts in a file without a name.
type fileContexts struct {
	*os.File
	count uint32
	size  uint64
}

func loadContexts(r io.Reader, k *kept, tempDir string) (*fileContexts, error) {
	f, err := (&Options{WorkDir: tempDir}).tempFile()
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(f, r, int64(k.ContextBytes)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &fileContexts{f, k.Contexts, k.ContextBytes}, nil
}

func (c *fileContexts) Count() uint32 { return c.count }
func (c *fileContexts) Size() uint64  { return c.size }

func (c *fileContexts) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, io.NewSectionReader(c.File, 0, int64(c.size)))
}
