//go:build peers

package write

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// nydusd reads what we write, with its own validation on, so that it looks at the
// chunk information, the table of contents and the digest section of each blob.
// nydus-image check looks at the bootstrap: at that of layers, since it refuses
// xattrs that nydusd reads, in images of its own making, too. Run by make interop.
func TestNydusAgrees(t *testing.T) {
	nydusd, nydusImage := testenv.Peer(t, "nydusd"), testenv.Peer(t, "nydus-image")
	everything, layers := fixtureTars(t, "everything.tar"), fixtureTars(t, "layer1.tar", "layer2.tar", "layer3.tar")
	for name, f := range flavours {
		if f.batch > 0 || f.encrypt || f.v2 {
			continue // 2.2.0 knows none of them; for 2.4 there are the blobs that it wrote itself
		}
		t.Run(name, func(t *testing.T) {
			f.inline = false // nydusd wants to be told of such an image in other ways
			if f.id == "" {
				dir := t.TempDir()
				bootstrap := buildAs(t, f, 2, layers...).save(t, dir)
				out, err := exec.Command(nydusImage, "check", "-B", bootstrap, "-D", dir, "-l", "warn").CombinedOutput()
				if err != nil {
					t.Errorf("nydus-image check: %v: %.2000s", err, out)
				}
			}
			dir := t.TempDir()
			sameByNydusd(t, nydusd, dir, buildAs(t, f, 2, everything...).save(t, dir), "everything.ndjson")
		})
	}
}

// nydus-image finds the bootstrap inside a blob.
func TestNydusOpensBlobs(t *testing.T) {
	nydusImage := testenv.Peer(t, "nydus-image")
	for _, name := range []string{"v6 inline", "v6 inline toc", "v5 inline"} {
		t.Run(name, func(t *testing.T) {
			f, dir := flavours[name], t.TempDir()
			b := buildAs(t, f, 1, fixtureTars(t, "layer1.tar")...)
			b.save(t, dir)
			for id := range b.data {
				out, err := exec.Command(nydusImage, "check", "-B", filepath.Join(dir, id), "-D", dir, "-l", "warn").CombinedOutput()
				if err != nil || !bytes.Contains(out, []byte(id)) {
					t.Errorf("nydus-image check: %v: %.2000s", err, out)
				}
			}
		})
	}
}

// nydus-image merges bootstraps that we put into blobs, the way converters call
// it, and nydusd reads what comes out.
func TestNydusMergesOurLayers(t *testing.T) {
	nydusImage, nydusd := testenv.Peer(t, "nydus-image"), testenv.Peer(t, "nydusd")
	for _, name := range []string{"v6 inline toc", "v5 inline"} {
		t.Run(name, func(t *testing.T) {
			f, dir := flavours[name], t.TempDir()
			f.whiteouts = tree.WhiteoutNone
			args := []string{"merge", "-B", filepath.Join(dir, "image.boot"), "-l", "warn"}
			var ids, sizes, tocs, tocSizes, sources []string
			for _, data := range fixtureTars(t, "layer1.tar", "layer2.tar", "layer3.tar") {
				b := buildAs(t, f, 1, data)
				b.save(t, dir)
				info := b.info
				ids, sizes = append(ids, info.ID), append(sizes, strconv.FormatUint(info.Entry.CompressedSize, 10))
				tocs = append(tocs, hex.EncodeToString(info.Entry.TOCDigest[:]))
				tocSizes = append(tocSizes, strconv.Itoa(int(info.Entry.TOCSize)))
				layer := filepath.Join(t.TempDir(), info.ID)
				if err := os.WriteFile(layer, b.bootstrap, 0o600); err != nil {
					t.Fatal(err)
				}
				sources = append(sources, layer)
			}
			args = append(args, "--blob-digests", strings.Join(ids, ","), "--blob-sizes", strings.Join(sizes, ","))
			if f.Version != 5 {
				args = append(args, "--blob-toc-digests", strings.Join(tocs, ","), "--blob-toc-sizes", strings.Join(tocSizes, ","))
			}
			if out, err := exec.Command(nydusImage, append(args, sources...)...).CombinedOutput(); err != nil {
				t.Fatalf("nydus-image merge: %v: %.2000s", err, out)
			}
			sameByNydusd(t, nydusd, dir, filepath.Join(dir, "image.boot"), "layers.ndjson")
		})
	}
}

func TestNydusdReadsLayers(t *testing.T) {
	nydusd := testenv.Peer(t, "nydusd")
	for _, version := range []int{5, 6} {
		for _, chunkSize := range []uint32{4096, blob.DefaultChunkSize} {
			t.Run(fmt.Sprintf("v%d %d", version, chunkSize), func(t *testing.T) {
				o := Options{Format: zstdBlake3, Version: version, Prefetch: []string{"/"}}
				o.ChunkSize = chunkSize
				dir := t.TempDir()
				bootstrap := build(t, o, 2, fixtureTars(t, "layer1.tar", "layer2.tar", "layer3.tar")...).save(t, dir)
				sameByNydusd(t, nydusd, dir, bootstrap, "layers.ndjson")
			})
		}
	}
}

// sameByNydusd mounts an image with nydusd and compares what is there.
func sameByNydusd(t *testing.T, nydusd, dir, bootstrap, tree string) {
	t.Helper()
	mnt := mountNydusd(t, nydusd, dir, bootstrap)
	want := manifest(t, tree)
	delete(want, "/special/sock") // a tar holds no sockets
	got := observe(t, mnt)
	for _, name := range []string{"/times/t0", "/times/t1"} {
		if l, ok := got[name]; ok { // nydusd takes an mtime of 0 s for none and shows when it started
			l.Mtime = 0
			got[name] = l
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tree differs (-want +got):\n%s", diff)
	}
}

// mountNydusd mounts an image with nydusd and FUSE.
func mountNydusd(t *testing.T, program, dir, bootstrap string) string {
	t.Helper()
	config := fmt.Sprintf(`{"device":{"backend":{"type":"localfs","config":{"dir":%q}},
		"cache":{"type":"blobcache","config":{"work_dir":%q},"validate":true}},
		"mode":"direct","enable_xattr":true,"fs_prefetch":{"enable":true,"threads_count":2}}`, dir, t.TempDir())
	return rafstest.MountNydusd(t, program, config, bootstrap)
}
