package probe

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tree makes one entry of each kind that needs no privilege.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Mkdir(at("b-dir"), 0o750))
	must(t, os.WriteFile(at("a"), []byte("hello\n"), 0o640))
	must(t, os.Chmod(at("a"), 0o640|os.ModeSetuid))
	must(t, os.Link(at("a"), at("b-dir/again")))
	must(t, os.WriteFile(at("c\xff"), nil, 0o644))
	must(t, os.WriteFile(at("hex:61"), nil, 0o644))
	must(t, os.Symlink("to/\xfe", at("link")))
	must(t, unix.Mkfifo(at("pipe"), 0o600))
	old := unix.NsecToTimespec(time.Unix(-5, 999_999_999).UnixNano())
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, at("a"), []unix.Timespec{old, old}, 0))
	return dir
}

func TestWalk(t *testing.T) {
	dir := tree(t)
	got, err := Tree(dir)
	must(t, err)
	var paths []string
	byPath := map[string]Entry{}
	for _, e := range got {
		paths = append(paths, e.Path)
		byPath[e.Path] = e
	}
	want := []string{"/", "/a", "/b-dir", "/b-dir/again", "hex:2f63ff", "/hex:61", "/link", "/pipe"}
	if !reflect.DeepEqual(paths, want) {
		t.Fatalf("paths %q, want %q", paths, want)
	}
	const helloSum = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	for path, w := range map[string]Entry{
		"/a":    {Mode: "104640", UID: uid, GID: gid, Nlink: 2, Size: 6, Mtime: -5, MtimeNsec: 999_999_999, SHA256: helloSum},
		"/link": {Mode: "120777", UID: uid, GID: gid, Nlink: 1, Size: 4, Link: "hex:746f2ffe"},
		"/pipe": {Mode: "10600", UID: uid, GID: gid, Nlink: 1},
	} {
		g := byPath[path]
		w.Path = path
		if path != "/a" {
			w.Mtime, w.MtimeNsec = g.Mtime, g.MtimeNsec
		}
		if d := Diff([]Entry{g}, []Entry{w}); d != nil {
			t.Errorf("%v", d)
		}
	}
	if e := byPath["/b-dir"]; e.Nlink != 0 || e.Size != 0 || e.Mode != "40750" {
		t.Errorf("folder: got %+v, want mode 40750 without nlink and size", e)
	}
}

func TestWalkMissing(t *testing.T) {
	if _, err := Tree(filepath.Join(t.TempDir(), "absent")); err == nil {
		t.Errorf("a root that does not exist is no error")
	}
}

func TestXattrs(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(name, nil, 0o644))
	if err := unix.Setxattr(name, "user.empty", nil, 0); err != nil {
		t.Skipf("the temporary folder takes no extended attributes: %v", err)
	}
	must(t, unix.Setxattr(name, "user.bytes", []byte{0, 255}, 0))
	e, _, err := look(name)
	must(t, err)
	if want := map[string]string{"user.empty": "", "user.bytes": "00ff"}; !reflect.DeepEqual(e.Xattrs, want) {
		t.Errorf("xattrs %v, want %v", e.Xattrs, want)
	}
}

func TestManifestRoundTrip(t *testing.T) {
	want, err := Tree(tree(t))
	must(t, err)
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	for _, e := range want {
		must(t, enc.Encode(e))
	}
	got, err := ReadManifest(&text)
	must(t, err)
	if d := Diff(got, want); d != nil {
		t.Errorf("%v", d)
	}
	if _, err := ReadManifest(strings.NewReader("{\"path\":\"/\"}\n{")); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("half a line: error %v, want one that names line 2", err)
	}
}

func TestDiff(t *testing.T) {
	base := Entry{Path: "/f", Mode: "100644", UID: 1, GID: 2, Nlink: 1, Size: 3, Mtime: 4, MtimeNsec: 5, SHA256: "aa"}
	with := func(change func(*Entry)) Entry {
		e := base
		change(&e)
		return e
	}
	for _, tc := range []struct {
		got  []Entry
		want string
	}{
		{[]Entry{base}, ""},
		{[]Entry{with(func(e *Entry) { e.Xattrs = map[string]string{} })}, ""},
		{nil, "/f: missing"},
		{[]Entry{base, base}, "/f: listed twice"},
		{[]Entry{base, {Path: "/g"}}, "/g: not wanted"},
		{[]Entry{with(func(e *Entry) { e.Mode = "100600" })}, "/f: mode 100600, want 100644"},
		{[]Entry{with(func(e *Entry) { e.UID = 9 })}, "/f: uid 9, want 1"},
		{[]Entry{with(func(e *Entry) { e.GID = 9 })}, "/f: gid 9, want 2"},
		{[]Entry{with(func(e *Entry) { e.Nlink = 9 })}, "/f: nlink 9, want 1"},
		{[]Entry{with(func(e *Entry) { e.Size = 9 })}, "/f: size 9, want 3"},
		{[]Entry{with(func(e *Entry) { e.Mtime = 9 })}, "/f: mtime 9, want 4"},
		{[]Entry{with(func(e *Entry) { e.MtimeNsec = 9 })}, "/f: mtime_nsec 9, want 5"},
		{[]Entry{with(func(e *Entry) { e.Rdev = 9 })}, "/f: rdev 9, want 0"},
		{[]Entry{with(func(e *Entry) { e.Link = "x" })}, "/f: link x, want "},
		{[]Entry{with(func(e *Entry) { e.SHA256 = "bb" })}, "/f: sha256 bb, want aa"},
		{[]Entry{with(func(e *Entry) { e.Xattrs = map[string]string{"a": "00"} })}, "/f: xattrs map[a:00], want map[]"},
	} {
		if got := strings.Join(Diff(tc.got, []Entry{base}), "\n"); got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
}
