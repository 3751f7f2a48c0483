package rootfs

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestHostSuite(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"ID=debian\nVERSION_CODENAME=bookworm\n", "bookworm"},
		{"VERSION_CODENAME=\"noble\"\nID=ubuntu", "noble"},
		{"ID=other\n", ""},
	} {
		path := filepath.Join(t.TempDir(), "os-release")
		if err := os.WriteFile(path, []byte(tc.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := hostSuite(path); got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%q: got %q, %v, want %q", tc.text, got, err, tc.want)
		}
	}
}

func TestKey(t *testing.T) {
	seen := map[string]Options{}
	for _, o := range []Options{
		{Suite: "bookworm"}, {Suite: "trixie"},
		{Suite: "bookworm", Packages: []string{"python3"}},
		{Suite: "bookworm", Packages: []string{"python3", "busybox"}},
		{Suite: "bookworm", Packages: []string{"python3-busybox"}},
		{Suite: "bookworm", Packages: []string{"python3"}, Layers: [][]string{{"busybox"}}},
		{Suite: "bookworm", Packages: []string{"python3"}, Layers: [][]string{{"busybox", "git"}}},
		{Suite: "bookworm", Packages: []string{"python3"}, Layers: [][]string{{"busybox"}, {"git"}}},
	} {
		if other, found := seen[o.key()]; found {
			t.Errorf("%+v and %+v share an entry", o, other)
		}
		seen[o.key()] = o
	}
}

// A layer has what is new or changed, all names of an inode together, and whiteouts.
func TestDifference(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, entries ...tar.Header) string {
		t.Helper()
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range entries {
			h.Size, h.Format = int64(len(h.Uname)), tar.FormatPAX
			if h.Typeflag == 0 {
				h.Typeflag = tar.TypeReg
			}
			body := h.Uname // stands for the content here
			h.Uname = ""
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(body)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	dirHeader := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755} }
	link := func(name, to string) tar.Header { return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to} }
	file := func(name, body string) tar.Header { return tar.Header{Name: name, Uname: body} }
	xattr := file("./x", "same")
	xattr.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "b"}
	lower := write("lower", dirHeader("./"), dirHeader("./old"), file("./old/a", "1"), file("./old/b", "1"),
		file("./same", "1"), file("./x", "same"), file("./first", "1"), link("./second", "./first"))
	upper := write("upper", dirHeader("./"), dirHeader("./new"), file("./new/a", "1"), file("./same", "1"), xattr,
		file("./first", "1"), link("./second", "./first"), link("./third", "./first"))
	var out bytes.Buffer
	if err := difference(&out, lower, upper); err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		got = append(got, h.Name)
	}
	want := []string{".wh.old", "./new", "./new/a", "./x", "./first", "./second", "./third"}
	if !slices.Equal(got, want) {
		t.Errorf("entries = %q, want %q", got, want)
	}
}
