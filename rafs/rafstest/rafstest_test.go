package rafstest

import (
	"errors"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const manifest = `{"path":"/a","mode":"40755","uid":1,"gid":2,"size":0,"mtime":-3,"mtime_nsec":4}
{"path":"hex:2f612fff","mode":"100644","uid":0,"gid":0,"nlink":2,"size":5,"mtime":6,"mtime_nsec":7,"sha256":"00","xattrs":{"user.x":"00ff"}}
{"path":"/l","mode":"120777","uid":0,"gid":0,"nlink":1,"size":1,"mtime":0,"mtime_nsec":0,"link":"hex:fe"}
{"path":"/d","mode":"20600","uid":0,"gid":0,"nlink":1,"size":0,"mtime":0,"mtime_nsec":0,"rdev":259}
`

func parse(t *testing.T) []Entry {
	t.Helper()
	entries, err := ParseManifest(strings.NewReader(manifest))
	if err != nil || len(entries) != 4 {
		t.Fatalf("%d entries, %v, want 4", len(entries), err)
	}
	return entries
}

func TestParseManifest(t *testing.T) {
	e := parse(t)
	if e[0].Path != "/a" || !e[0].IsDir() || e[0].Mtime != -3 || e[0].MtimeNsec != 4 {
		t.Errorf("folder: got %+v", e[0])
	}
	if e[1].Path != "/a/\xff" || !e[1].IsRegular() || e[1].Xattrs["user.x"] != "\x00\xff" {
		t.Errorf("file: got %+v", e[1])
	}
	if e[2].Link != "\xfe" || e[3].Rdev != 259 {
		t.Errorf("link and device: got %+v, %+v", e[2], e[3])
	}
	for _, bad := range []string{"x", `{"mode":"9"}`, `{"mode":"0","path":"hex:0"}`, `{"mode":"0","xattrs":{"a":"0"}}`} {
		if _, err := ParseManifest(strings.NewReader(bad)); err == nil {
			t.Errorf("%s was parsed", bad)
		}
	}
}

func list(entries []Entry, err error) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for i, e := range entries {
			if i > 0 {
				err = nil
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// Each field that differs must be told of; a comparison that cannot fail is
// worth nothing.
func TestDiff(t *testing.T) {
	if d := Diff(parse(t), list(parse(t), nil)); len(d) != 0 {
		t.Errorf("a tree differs from itself: %q", d)
	}
	for name, tt := range map[string]struct {
		change func(e []Entry) []Entry
		says   string
	}{
		"missing":     {func(e []Entry) []Entry { return e[1:] }, `"/a": missing`},
		"too many":    {func(e []Entry) []Entry { return append(e, Entry{Path: "/x"}) }, `"/x": not wanted`},
		"twice":       {func(e []Entry) []Entry { return append(e, e[0]) }, `"/a": there twice`},
		"mode":        {func(e []Entry) []Entry { e[0].Mode = 0o40700; return e }, "mode = 40700, want 40755"},
		"uid":         {func(e []Entry) []Entry { e[0].UID = 9; return e }, "uid = 9, want 1"},
		"gid":         {func(e []Entry) []Entry { e[0].GID = 9; return e }, "gid = 9, want 2"},
		"mtime":       {func(e []Entry) []Entry { e[0].Mtime = 9; return e }, "mtime = 9, want -3"},
		"nanoseconds": {func(e []Entry) []Entry { e[0].MtimeNsec = 9; return e }, "mtime_nsec = 9, want 4"},
		"nlink":       {func(e []Entry) []Entry { e[1].Nlink = 9; return e }, "nlink = 9, want 2"},
		"size":        {func(e []Entry) []Entry { e[1].Size = 9; return e }, "size = 9, want 5"},
		"content":     {func(e []Entry) []Entry { e[1].SHA256 = "01"; return e }, "sha256 = 01, want 00"},
		"link":        {func(e []Entry) []Entry { e[2].Link = "x"; return e }, "link = x"},
		"device":      {func(e []Entry) []Entry { e[3].Rdev = 1; return e }, "rdev = 1, want 259"},
		"xattr value": {func(e []Entry) []Entry { e[1].Xattrs["user.x"] = "1"; return e }, `xattr "user.x" = 31, want 00ff`},
		"xattr gone":  {func(e []Entry) []Entry { e[1].Xattrs = nil; return e }, `xattr "user.x" missing`},
		"xattr added": {func(e []Entry) []Entry { e[0].Xattrs = map[string]string{"user.y": ""}; return e }, `xattr "user.y" not wanted`},
	} {
		d := Diff(parse(t), list(tt.change(parse(t)), nil))
		if len(d) != 1 || !strings.Contains(d[0], tt.says) {
			t.Errorf("%s: got %q, want %q", name, d, tt.says)
		}
	}
	d := Diff(parse(t), list(parse(t), errors.New("broken")))
	if len(d) != 1 || !strings.Contains(d[0], `"/a": broken`) {
		t.Errorf("error: got %q", d)
	}
	// What a folder takes and how many links it has is the file system's affair.
	e := parse(t)
	e[0].Size, e[0].Nlink = 4096, 3
	if d := Diff(parse(t), list(e, nil)); len(d) != 0 {
		t.Errorf("size and links of a folder: %q", d)
	}
}

func TestWholeSeconds(t *testing.T) {
	e := parse(t)
	if got := WholeSeconds(e); got[1].MtimeNsec != 0 || e[1].MtimeNsec != 7 {
		t.Errorf("got %d, was %d", got[1].MtimeNsec, e[1].MtimeNsec)
	}
}

func TestDir(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "sub"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "sub/file"), []byte("abc"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", filepath.Join(root, "sub/link")); err != nil {
		t.Fatal(err)
	}
	got := map[string]Entry{}
	for e, err := range Dir(root) {
		if err != nil {
			t.Fatal(err)
		}
		got[e.Path] = e
	}
	if len(got) != 3 || got["/sub"].Mode != 0o40750 || got["/sub/link"].Link != "file" {
		t.Errorf("got %+v", got)
	}
	const abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	if f := got["/sub/file"]; f.SHA256 != abc || f.Size != 3 || f.Mode != 0o100640 || f.Nlink != 1 {
		t.Errorf("got %+v", f)
	}
}

func TestEncodeDev(t *testing.T) {
	for _, tt := range []struct {
		dev  uint64
		want uint32
	}{{0x103, 259}, {0x811, 2065}} {
		if got := encodeDev(tt.dev); got != tt.want {
			t.Errorf("%#x: got %d, want %d", tt.dev, got, tt.want)
		}
	}
}
