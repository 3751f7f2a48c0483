package rootfs

import (
	"os"
	"path/filepath"
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
	} {
		if other, found := seen[o.key()]; found {
			t.Errorf("%+v and %+v share an entry", o, other)
		}
		seen[o.key()] = o
	}
}
