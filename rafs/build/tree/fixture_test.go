package tree

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/internal/testenv"
)

// manifestLine is an entry of a manifest of nydus-made/trees.
type manifestLine struct {
	Path      string            `json:"path"`
	Mode      string            `json:"mode"`
	UID       uint32            `json:"uid"`
	GID       uint32            `json:"gid"`
	Nlink     int               `json:"nlink"`
	Size      uint64            `json:"size"`
	Mtime     int64             `json:"mtime"`
	MtimeNsec uint32            `json:"mtime_nsec"`
	Rdev      uint32            `json:"rdev"`
	Link      string            `json:"link"`
	SHA256    string            `json:"sha256"`
	Xattrs    map[string]string `json:"xattrs"`
}

func readManifest(t *testing.T, name string) map[string]manifestLine {
	t.Helper()
	f, err := os.Open(filepath.Join(testenv.Fixtures(t), "nydus-made", "trees", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unhex := func(s string) string {
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
	want := map[string]manifestLine{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var l manifestLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		l.Path, l.Link = unhex(l.Path), unhex(l.Link)
		if len(l.Xattrs) == 0 {
			l.Xattrs = nil
		}
		want[l.Path] = l
	}
	return want
}

// manifestOf lists a tree as a manifest does.
func manifestOf(t *testing.T, tr *Tree, files *memory) map[string]manifestLine {
	t.Helper()
	got := map[string]manifestLine{}
	paths, names := map[ID]string{}, map[ID]int{}
	for pass := range 2 { // names are counted first
		for id := Root + 1; int(id) < tr.Len(); id++ {
			n, err := tr.Node(id)
			if err != nil {
				t.Fatal(err)
			}
			if names[n.Inode]++; pass == 0 {
				continue
			}
			paths[id] = path.Join("/", paths[n.Parent], n.Name)
			l := manifestLine{
				Path: paths[id], Mode: fmt.Sprintf("%o", n.Mode), UID: n.UID, GID: n.GID,
				Mtime: n.Mtime, MtimeNsec: n.MtimeNsec, Rdev: n.Rdev, Link: n.Target,
			}
			if !n.IsDir() {
				l.Size = n.Size
			}
			if n.Type() == TypeFile {
				h := sha256.New()
				for ref, err := range tr.Refs(&n) {
					if err != nil {
						t.Fatal(err)
					}
					h.Write([]byte(files.files[ref.Index]))
				}
				l.SHA256 = hex.EncodeToString(h.Sum(nil))
			}
			for _, x := range n.Xattrs {
				if l.Xattrs == nil {
					l.Xattrs = map[string]string{}
				}
				l.Xattrs[x.Name] = hex.EncodeToString([]byte(x.Value))
			}
			got[l.Path] = l
		}
	}
	for id, p := range paths {
		n, err := tr.Node(id)
		if err != nil {
			t.Fatal(err)
		}
		if l := got[p]; !n.IsDir() {
			l.Nlink = names[n.Inode] / 2
			got[p] = l
		}
	}
	return got
}

func sha256Hex(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func TestFixtures(t *testing.T) {
	for _, tc := range []struct {
		tree string
		tars []string
	}{
		{"everything.ndjson", []string{"everything.tar"}},
		{"tarable.ndjson", []string{"tarable.tar"}},
		{"layers.ndjson", []string{"layer1.tar", "layer2.tar", "layer3.tar"}},
	} {
		t.Run(tc.tree, func(t *testing.T) {
			var files memory
			var layers []*Layer
			for _, name := range tc.tars {
				f, err := os.Open(filepath.Join(testenv.Fixtures(t), "nydus-made", "tars", name))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				l, err := ReadTar(context.Background(), f, &files, ReadOptions{})
				if err != nil {
					t.Fatal(err)
				}
				layers = append(layers, l)
			}
			tr, err := Merge(context.Background(), t.TempDir(), layers...)
			if err != nil {
				t.Fatal(err)
			}
			defer tr.Close()
			want := readManifest(t, tc.tree)
			delete(want, "/special/sock") // a tar holds no sockets
			for p, l := range want {
				if l.Mode[0] == '4' { // folders: neither is told by a tar
					l.Nlink, l.Size = 0, 0
					want[p] = l
				}
			}
			if diff := cmp.Diff(want, manifestOf(t, tr, &files)); diff != "" {
				t.Errorf("tree (-want +got):\n%.5000s", diff)
			}
		})
	}
}

// Tars of other implementations than GNU's: hard links and xattrs as bsdtar on
// macOS writes them, whose names have no namespace that Linux knows.
func TestUpstreamTars(t *testing.T) {
	for _, tc := range []struct {
		name    string
		dropped int
	}{{"all-entry-type.tar", 0}, {"all-entry-type-macos.tar", 3}} {
		f, err := os.Open(filepath.Join(testenv.Fixtures(t), "upstream", "tar", tc.name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var files memory
		l, err := ReadTar(context.Background(), f, &files, ReadOptions{})
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if l.DroppedXattrs != tc.dropped {
			t.Errorf("%s: %d dropped xattrs, want %d", tc.name, l.DroppedXattrs, tc.dropped)
		}
		tr, err := Merge(context.Background(), "", l)
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		defer tr.Close()
		var got []string
		for _, line := range list(t, tr, &files) {
			if strings.Contains(line, "link") && !strings.Contains(line, "._") {
				got = append(got, line)
			}
		}
		want := []string{
			"tar/dir1/dir3/hardlink1.txt This is a test\n", "tar/dir1/dir3/xfile.txt == tar/dir1/dir3/hardlink1.txt",
			"tar/dir1/hardlink2.txt == tar/dir1/dir3/hardlink1.txt", "tar/dir2/hardlink3.txt == tar/dir1/dir3/hardlink1.txt",
			"tar/dir2/symlink1.txt -> ../dir1/dir3/file1.txt",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
}
