package tree

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
)

// sourceFolder has what tars write in special ways.
func sourceFolder(t *testing.T, long bool) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, data string) string {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(data), 0o640); err != nil {
			t.Fatal(err)
		}
		return full
	}
	old := time.Unix(1<<31-1, 123456789)
	for name, data := range map[string]string{"d/plain": "text", "empty": "", "e/odd\nname \xff\\": "1"} {
		if err := os.Chtimes(write(name, data), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "d/plain"), filepath.Join(dir, "e/linked")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../d/plain", filepath.Join(dir, "e/symlink")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !long {
		return dir
	}
	write(strings.Repeat("long/", 60)+strings.Repeat("n", 200), "deep down")
	target := strings.Repeat("t", 300)
	if err := os.Symlink(target, filepath.Join(dir, "far")); err != nil {
		t.Fatal(err)
	}
	// Data, hole, data, hole to the end; and nothing but a hole.
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range []int64{0, 1 << 20, 1<<20 + 8192, 3 << 20} {
		if _, err := f.WriteAt([]byte("data at "+fmt.Sprint(off)), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(4<<20 + 5); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(write("hole", ""), 1<<20); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Every format that GNU tar writes is the folder that it was made from.
func TestGNUTar(t *testing.T) {
	tool := testenv.NeedsTool(t, "tar")[0]
	for _, tc := range []struct {
		name  string
		args  []string
		long  bool // names, holes
		nsec  bool
		owner uint32
	}{
		{"v7", []string{"--format=v7"}, false, false, 1000},
		{"ustar", []string{"--format=ustar"}, false, false, 1000},
		{"oldgnu", []string{"--format=oldgnu", "--sparse"}, true, false, 1<<32 - 2},
		{"gnu", []string{"--format=gnu", "--sparse"}, true, false, 1<<32 - 2},
		{"pax", []string{"--format=pax"}, true, true, 1<<31 + 5},
		{"pax with sparse files 0.0", []string{"--format=pax", "--sparse", "--sparse-version=0.0"}, true, true, 1},
		{"pax with sparse files 0.1", []string{"--format=pax", "--sparse", "--sparse-version=0.1"}, true, true, 1},
		{"pax with sparse files 1.0", []string{"--format=pax", "--sparse", "--sparse-version=1.0"}, true, true, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := sourceFolder(t, tc.long)
			if tc.name == "v7" { // which has no fifos
				if err := os.Remove(filepath.Join(dir, "fifo")); err != nil {
					t.Fatal(err)
				}
			}
			args := append(tc.args, fmt.Sprintf("--owner=x:%d", tc.owner), fmt.Sprintf("--group=y:%d", tc.owner), "-C", dir, "-cf", "-", ".")
			cmd := exec.Command(tool, args...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			data, err := cmd.Output()
			if err != nil {
				t.Fatalf("tar: %v: %s", err, stderr.Bytes())
			}
			var files memory
			l, err := ReadTar(context.Background(), bytes.NewReader(data), &files, ReadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			tr, err := Merge(context.Background(), "", l)
			if err != nil {
				t.Fatal(err)
			}
			defer tr.Close()
			got := manifestOf(t, tr, &files)
			for p, l := range got {
				if l.UID != tc.owner || l.GID != tc.owner {
					t.Errorf("%q: owner %d:%d, want %d", p, l.UID, l.GID, tc.owner)
				}
				l.UID, l.GID, l.Nlink = 0, 0, 0
				got[p] = l
			}
			if diff := cmp.Diff(observeFolder(t, dir, tc.nsec), got); diff != "" {
				t.Errorf("tree (-want +got):\n%.3000s", diff)
			}
			linked, plain := lookup(t, tr, "e/linked"), lookup(t, tr, "d/plain")
			if linked.Inode != plain.Inode {
				t.Error("the hard link is another inode")
			}
		})
	}
}

// observeFolder describes a folder as manifestOf does a tree, without owners and
// link counts.
func observeFolder(t *testing.T, dir string, nsec bool) map[string]manifestLine {
	t.Helper()
	want := map[string]manifestLine{}
	err := filepath.WalkDir(dir, func(full string, _ os.DirEntry, err error) error {
		if err != nil || full == dir {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(full, &st); err != nil {
			return err
		}
		l := manifestLine{Path: strings.TrimPrefix(full, dir), Mode: fmt.Sprintf("%o", st.Mode), Mtime: st.Mtim.Sec}
		if nsec {
			l.MtimeNsec = uint32(st.Mtim.Nsec)
		}
		switch st.Mode & TypeMask {
		case TypeFile:
			data, err := os.ReadFile(full)
			if err != nil {
				return err
			}
			l.Size, l.SHA256 = uint64(st.Size), sha256Hex(data)
		case TypeLink:
			if l.Link, err = os.Readlink(full); err != nil {
				return err
			}
			l.Size = uint64(len(l.Link))
		}
		want[l.Path] = l
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return want
}
