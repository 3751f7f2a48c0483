package write

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rafsd/rafsd/internal/testenv"
	"golang.org/x/sys/unix"
)

// line is an entry of a manifest of nydus-made/trees.
type line struct {
	Path      string            `json:"path"`
	Mode      string            `json:"mode"`
	UID       uint32            `json:"uid"`
	GID       uint32            `json:"gid"`
	Nlink     uint64            `json:"nlink"`
	Size      int64             `json:"size"`
	Mtime     int64             `json:"mtime"`
	MtimeNsec int64             `json:"mtime_nsec"`
	Rdev      uint64            `json:"rdev"`
	Link      string            `json:"link"`
	SHA256    string            `json:"sha256"`
	Xattrs    map[string]string `json:"xattrs"`
}

func manifest(t *testing.T, name string) map[string]line {
	t.Helper()
	f, err := os.Open(filepath.Join(testenv.Fixtures(t), "nydus-made", "trees", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := map[string]line{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatalf("%s: %v: %s", name, err, lines.Bytes())
		}
		l.Path = unhex(t, l.Path)
		l.Link = unhex(t, l.Link)
		want[l.Path] = l
	}
	return want
}

func unhex(t *testing.T, s string) string {
	t.Helper()
	digits, ok := strings.CutPrefix(s, "hex:")
	if !ok {
		return s
	}
	b, err := hex.DecodeString(digits)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// observe describes a mounted tree the way the manifests do.
func observe(t *testing.T, root string) map[string]line {
	t.Helper()
	got := map[string]line{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		l := line{
			Path: strings.TrimPrefix(path, root), Mode: fmt.Sprintf("%o", st.Mode), UID: st.Uid, GID: st.Gid,
			Mtime: st.Mtim.Sec, MtimeNsec: st.Mtim.Nsec,
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFCHR, unix.S_IFBLK:
			l.Rdev = st.Rdev
		case unix.S_IFREG:
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			if l.SHA256, err = sha256hex(f); err != nil {
				return err
			}
		case unix.S_IFLNK:
			if l.Link, err = os.Readlink(path); err != nil {
				return err
			}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			l.Nlink, l.Size = uint64(st.Nlink), st.Size
		}
		l.Xattrs, err = readXattrs(path)
		got[l.Path] = l
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func readXattrs(path string) (map[string]string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.ENOTSUP) || n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listxattr %q: %w", path, err)
	}
	xattrs := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("getxattr %q of %q: %w", name, path, err)
		}
		xattrs[name] = hex.EncodeToString(value[:n])
	}
	return xattrs, nil
}

// saveFlat writes the bootstrap and the uncompressed layout of every blob, in
// the order of the blob table.
func (b *built) saveFlat(t *testing.T) (bootstrap string, devices []string) {
	t.Helper()
	dir := t.TempDir()
	bootstrap = filepath.Join(dir, "image.boot")
	if err := os.WriteFile(bootstrap, b.bootstrap, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, info := range b.plan.Blobs() {
		name := filepath.Join(dir, info.ID+".data")
		data := b.data[info.ID]
		if info.ID == UnknownID {
			for _, data = range b.data { // the only one
				continue
			}
		}
		if err := os.WriteFile(name, uncompressed(t, info, data), 0o644); err != nil {
			t.Fatal(err)
		}
		devices = append(devices, name)
	}
	return bootstrap, devices
}

// The Linux EROFS driver is the second opinion on everything in a bootstrap that
// it understands, and fsck.erofs is the third.
func TestLinuxAgrees(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.NeedsTool(t, "losetup", "mount")
	fsck := testenv.NeedsTool(t, "fsck.erofs")[0]
	everything, layers := []string{"everything.tar"}, []string{"layer1.tar", "layer2.tar", "layer3.tar"}
	agree := func(t *testing.T, b *built, tree string) {
		bootstrap, devices := b.saveFlat(t)
		fsckEROFS(t, fsck, bootstrap, devices)
		want := manifest(t, tree)
		delete(want, "/special/sock") // a tar holds no sockets
		got := observe(t, testenv.MountEROFS(t, bootstrap, devices...))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("tree differs (-want +got):\n%s", diff)
		}
	}
	for name, f := range flavours {
		if f.Version != 5 {
			t.Run(name, func(t *testing.T) { agree(t, buildAs(t, f, 2, fixtureTars(t, everything...)...), "everything.ndjson") })
		}
	}
	for _, name := range []string{"v6 toc", "v6 batch", "v6 encrypt lz4", "v6 prefetch the root"} {
		t.Run("layers of "+name, func(t *testing.T) {
			agree(t, buildAs(t, flavours[name], 2, fixtureTars(t, layers...)...), "layers.ndjson")
		})
	}
}

func fsckEROFS(t *testing.T, fsck, bootstrap string, devices []string) {
	t.Helper()
	args := []string{"--extract"}
	for _, d := range devices {
		args = append(args, "--device="+d)
	}
	if out, err := exec.Command(fsck, append(args, bootstrap)...).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v: %s", err, out)
	}
}

func TestLinuxAgreesOnSizes(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.NeedsTool(t, "losetup", "mount")
	fsck := testenv.NeedsTool(t, "fsck.erofs")[0]
	layer, want := aroundABlock(t)
	bootstrap, devices := build(t, small, 1, layer).saveFlat(t)
	fsckEROFS(t, fsck, bootstrap, devices)
	got := map[string]string{}
	for name, l := range observe(t, testenv.MountEROFS(t, bootstrap, devices...)) {
		switch {
		case l.SHA256 != "":
			got[name] = fmt.Sprintf("%d %s", l.Size, l.SHA256)
		case l.Link != "":
			got[name] = "-> " + l.Link
		default:
			got[name] = l.Mode
		}
		size, marked := strings.CutPrefix(strings.TrimLeft(filepath.Base(name), "ds"), "x")
		if n, _ := strconv.Atoi(size); marked && (len(l.Xattrs["trusted.v"]) != 2*n || l.Xattrs["trusted.w"] != "77") {
			t.Errorf("%s: xattrs of %d and %d hex digits, want %d and 2", name, len(l.Xattrs["trusted.v"]), len(l.Xattrs["trusted.w"]), 2*n)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
}
