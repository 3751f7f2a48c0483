//go:build peers

package build

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/klauspost/compress/gzip"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// knows are the features of blobs that nydusd 2.2.0 takes. It takes neither batches nor encryption, nor blobs of files to prefetch.
const knows = layout.FeaturesKnown &^ (layout.FeatureBatch | layout.FeatureEncrypted | layout.FeatureSeparatePrefetch | layout.FeatureChunkDictGenerated | layout.FeatureExternal)

// nydusImage runs the tool and returns the blobs that it tells of.
func nydusImage(t *testing.T, stdin string, args ...string) []string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "output.json")
	cmd := exec.Command(testenv.Peer(t, "nydus-image"), append(args, "-J", out, "-l", "warn")...)
	cmd.Stdin = strings.NewReader(stdin)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nydus-image %q: %v: %s", args, err, text)
	}
	var result struct{ Blobs []string }
	data, err := os.ReadFile(out)
	must(t, err, json.Unmarshal(data, &result))
	return result.Blobs
}

// serve mounts an image by nydusd, if that knows all that is in it, and compares
// what it shows.
func serve(t *testing.T, bootstrap, blobs string, want []rafstest.Entry) {
	t.Helper()
	testenv.NeedsRoot(t)
	for _, b := range openTest(t, bootstrap).Blobs() {
		if layout.Features(b.Features)&layout.FeaturesIncompat&^knows != 0 {
			return
		}
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "config.json")
	must(t, os.WriteFile(config, []byte(`{"device":{"backend":{"type":"localfs","config":{"dir":"`+blobs+
		`"}},"cache":{"type":"blobcache","config":{"work_dir":"`+t.TempDir()+`"}}},"mode":"direct","digest_validate":false}`), 0o600))
	mnt := filepath.Join(dir, "mnt")
	must(t, os.Mkdir(mnt, 0o755))
	cmd := exec.Command(testenv.Peer(t, "nydusd"), "fuse", "--thread-num", "2", "--mountpoint", mnt, "--bootstrap", bootstrap,
		"--config", config, "--apisock", filepath.Join(dir, "api.sock"), "--rlimit-nofile", "0", "--log-level", "warn")
	log, err := os.Create(filepath.Join(dir, "log"))
	must(t, err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	defer func() {
		unix.Unmount(mnt, unix.MNT_DETACH)
		cmd.Process.Signal(syscall.SIGKILL)
		<-ended
	}()
	var parent, root unix.Stat_t
	must(t, unix.Stat(dir, &parent))
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		must(t, unix.Stat(mnt, &root))
		if root.Dev != parent.Dev {
			break
		}
		over := time.Now().After(deadline)
		select {
		case <-ended:
			over = true
		default:
		}
		if over {
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("nydusd does not mount %s: %s", bootstrap, text)
		}
	}
	// nydusd takes a time of 0 for none and shows when it was started.
	want = slices.Clone(want)
	zero := map[string]bool{}
	for i := range want {
		if want[i].Mtime == 0 && want[i].MtimeNsec == 0 {
			zero[want[i].Path] = true
		}
	}
	rafstest.Compare(t, want, func(yield func(rafstest.Entry, error) bool) {
		for e, err := range rafstest.Dir(mnt) {
			if zero[e.Path] {
				e.Mtime, e.MtimeNsec = 0, 0
			}
			if !yield(e, err) {
				return
			}
		}
	})
}

// nydus-image merges our layers, and we merge its, to the same tree.
func TestNydusMergesOurLayers(t *testing.T) {
	for _, version := range []int{5, 6} {
		dir := t.TempDir()
		var ours []string
		for _, blob := range layersOf(t, version, dir) {
			// It wants bootstraps, as a converter takes them out of the blobs.
			ours = append(ours, extract(t, blob))
		}
		theirs := filepath.Join(t.TempDir(), "theirs.boot")
		blobs := nydusImage(t, "", append([]string{"merge", "-B", theirs}, ours...)...)
		r := merge(t, mergeOptions(t, ours...))
		if !slices.Equal(blobs, r.Blobs) {
			t.Errorf("v%d: blobs %q, nydus-image says %q", version, r.Blobs, blobs)
		}
		var want []rafstest.Entry
		for e, err := range rafstest.Tree(openTest(t, theirs), rafstest.Blobs{dir}) {
			must(t, err)
			want = append(want, e)
		}
		compare(t, r.Bootstrap, []string{dir}, want)
		serve(t, r.Bootstrap, dir, want)
		nydusImage(t, "", "check", "-B", r.Bootstrap, "-D", dir)
	}
}

// extract puts the bootstrap inside a blob into a file named by the blob.
func extract(t *testing.T, blob string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), filepath.Base(blob)+".boot")
	im := openTest(t, blob)
	must(t, os.WriteFile(p, im.Bytes(), 0o600))
	return p
}

func TestWeMergeNydusLayers(t *testing.T) {
	for _, args := range [][]string{{"-v", "6"}, {"-v", "5"}, {"-v", "6", "--features", "blob-toc"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			dir := t.TempDir()
			var sources []string
			for i, names := range []map[string]string{
				{"keep": "k", "gone": "g", "d/x": "x", "big": string(noise(3, 1<<20+5))},
				{".wh.gone": "", "d/.wh..wh..opq": "", "d/new": "new", "small/1": "1", "small/2": "2"},
			} {
				boot := filepath.Join(t.TempDir(), "layer.boot")
				blobs := nydusImage(t, "", append([]string{"create", "-t", "dir-rafs", "--whiteout-spec", "none", "-D", dir, "-B", boot},
					append(args, layerDir(t, names))...)...)
				if len(blobs) != 1 {
					t.Fatalf("layer %d: blobs %q", i, blobs)
				}
				p := filepath.Join(filepath.Dir(boot), blobs[0])
				must(t, os.Rename(boot, p))
				sources = append(sources, p)
			}
			theirs := filepath.Join(t.TempDir(), "theirs.boot")
			nydusImage(t, "", append([]string{"merge", "-B", theirs}, sources...)...)
			var want []rafstest.Entry
			for e, err := range rafstest.Tree(openTest(t, theirs), rafstest.Blobs{dir}) {
				must(t, err)
				want = append(want, e)
			}
			r := merge(t, mergeOptions(t, sources...))
			compare(t, r.Bootstrap, []string{dir}, want)
			serve(t, r.Bootstrap, dir, want)
		})
	}
}

// Each flavour of ours is served by nydusd as the folder that it was made of.
func TestNydusdServesFlavours(t *testing.T) {
	src := source(t)
	for name, change := range flavours() {
		t.Run(name, func(t *testing.T) {
			o := options(t, src)
			change(&o)
			r := create(t, o)
			at := r.Bootstrap
			if o.InlineMeta {
				at = merge(t, mergeOptions(t, filepath.Join(o.BlobDir, r.Blob))).Bootstrap
			}
			serve(t, at, o.BlobDir, dirEntries(t, src))
		})
	}
}

// A dictionary of ours is one for nydus-image, and an image that was optimized or
// compacted here is one for nydusd.
func TestNydusTakesDictionaries(t *testing.T) {
	for _, version := range []string{"5", "6"} {
		dir := t.TempDir()
		o := DictionaryOptions{BlobDir: t.TempDir()}
		for _, r := range versions(t, int(version[0]-'0'), dir) {
			o.Sources = append(o.Sources, r.Bootstrap)
		}
		dict, err := Dictionary(context.Background(), o)
		must(t, err)
		src := layerDir(t, map[string]string{"same": string(noise(1, 2<<20+77)), "new": "new"})
		boot := filepath.Join(t.TempDir(), "image.boot")
		blobs := nydusImage(t, "", "create", "-t", "dir-rafs", "-v", version, "-D", dir, "-B", boot, "--chunk-dict", "bootstrap="+dict.Bootstrap, src)
		if !slices.Contains(blobs, dict.Blobs[0]) {
			t.Errorf("v%s: nydus-image made blobs %q, want it to use %s", version, blobs, dict.Blobs[0])
		}
		serve(t, boot, dir, dirEntries(t, src))

		own := options(t, src)
		own.Version, own.BlobDir, own.ChunkDict = int(version[0]-'0'), dir, dict.Bootstrap
		own.Bootstrap = filepath.Join(t.TempDir(), "own.boot")
		serve(t, create(t, own).Bootstrap, dir, dirEntries(t, src))
	}
}

func TestNydusdServesRework(t *testing.T) {
	for _, version := range []int{5, 6} {
		dir := t.TempDir()
		merged := merge(t, mergeOptions(t, layersOf(t, version, dir)...))
		var want []rafstest.Entry
		for e, err := range rafstest.Tree(openTest(t, merged.Bootstrap), rafstest.Blobs{dir}) {
			must(t, err)
			want = append(want, e)
		}
		c, err := Compact(context.Background(), CompactOptions{
			Source: merged.Bootstrap, Blobs: local(t, dir), BlobDir: dir, Bootstrap: filepath.Join(t.TempDir(), "c.boot"),
		})
		must(t, err)
		serve(t, c.Bootstrap, dir, want)
		o, err := Optimize(context.Background(), OptimizeOptions{
			Source: merged.Bootstrap, Blobs: local(t, dir), BlobDir: dir, Bootstrap: filepath.Join(t.TempDir(), "o.boot"),
			Files: []PrefetchFile{{Path: "/big"}, {Path: "/gone"}},
		})
		must(t, err)
		serve(t, o.Bootstrap, dir, want)
	}
}

// What overlayfs leaves in an upper folder is a layer for both.
func TestOverlayUpper(t *testing.T) {
	testenv.NeedsRoot(t)
	low := layerDir(t, map[string]string{"gone": "g", "d/x": "x", "keep": "k"})
	up := layerDir(t, map[string]string{"d/new": "new"})
	must(t, unix.Mknod(filepath.Join(up, "gone"), unix.S_IFCHR, 0),
		unix.Setxattr(filepath.Join(up, "d"), "trusted.overlay.opaque", []byte("y"), 0))
	base := options(t, low)
	parent := create(t, base)
	o := options(t, up)
	o.Parent, o.Whiteouts, o.BlobDir = parent.Bootstrap, tree.WhiteoutOverlay, base.BlobDir
	r := create(t, o)
	theirs := filepath.Join(t.TempDir(), "theirs.boot")
	nydusImage(t, "", "create", "-t", "dir-rafs", "--whiteout-spec", "overlayfs", "--parent-bootstrap", parent.Bootstrap,
		"-D", base.BlobDir, "-B", theirs, up)
	if got, want := paths(t, r.Bootstrap), paths(t, theirs); !slices.Equal(got, want) {
		t.Errorf("got %q, nydus-image %q", got, want)
	}
}

// An eStargz of which only the table of contents was read is served by nydusd, whose
// work folder is the one that got the chunk information. Run by make interop.
func TestNydusdServesStargz(t *testing.T) {
	member := func(data []byte) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, err := z.Write(data)
		must(t, err, z.Close())
		return b.Bytes()
	}
	sum := func(data []byte) string { return blob.DigesterSHA256.Sum(data).String() }
	big, small := noise(1, 3<<20+100), []byte("small")
	first := member(big)
	layer := append(slices.Clone(first), member(small)...)
	toc := fmt.Sprintf(`{"version":1,"entries":[
		{"name":"big","type":"reg","size":%d,"mode":420,"offset":0,"digest":"sha256:%s","chunkDigest":"sha256:%s"},
		{"name":"small","type":"reg","size":5,"mode":420,"offset":%d,"digest":"sha256:%s","chunkDigest":"sha256:%s"}]}`,
		len(big), sum(big), sum(big), len(first), sum(small), sum(small))
	o := options(t, filepath.Join(t.TempDir(), "stargz.index.json"))
	must(t, os.WriteFile(o.Source, []byte(toc), 0o600))
	o.Type, o.BlobID, o.BlobDataSize, o.ChunkSize = TOCRef, sum(layer), uint64(len(layer)), 0
	r := create(t, o)
	blobs := t.TempDir()
	must(t, os.WriteFile(filepath.Join(blobs, o.BlobID), layer, 0o600))
	mnt := rafstest.MountNydusd(t, testenv.Peer(t, "nydusd"), fmt.Sprintf(`{"device":{"backend":{"type":"localfs","config":{"dir":%q}},
		"cache":{"type":"blobcache","config":{"work_dir":%q}}},"mode":"direct"}`, blobs, o.BlobDir), r.Bootstrap)
	for name, want := range map[string][]byte{"big": big, "small": small} {
		if got, err := os.ReadFile(filepath.Join(mnt, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(want))
		}
	}
}
