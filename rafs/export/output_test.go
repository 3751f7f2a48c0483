package export

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A file is there when it was committed and leaves nothing when not, whether the
// file system has files without names or not.
func TestOutput(t *testing.T) {
	for kind, start := range map[string]func(string) (*output, error){"nameless": createNameless, "hidden": createHidden, "either": create} {
		for _, old := range []string{"", "old"} {
			for _, commit := range []bool{true, false} {
				dir := t.TempDir()
				path := filepath.Join(dir, "disk")
				if old != "" {
					if err := os.WriteFile(path, []byte(old), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				o, err := start(path)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := o.WriteString("new"); err != nil {
					t.Fatal(err)
				}
				want := old
				if commit {
					err, want = o.commit(), "new"
				}
				// Abort comes in any case, and may come twice.
				if err := errors.Join(err, o.abort(), o.abort()); err != nil {
					t.Errorf("%s, %q, commit %t: %v", kind, old, commit, err)
				}
				got, err := os.ReadFile(path)
				if string(got) != want || (err != nil) != (want == "") {
					t.Errorf("%s, %q, commit %t: got %q, %v, want %q", kind, old, commit, got, err, want)
				}
				names, err := filepath.Glob(filepath.Join(dir, "*"))
				hidden, herr := filepath.Glob(filepath.Join(dir, ".*"))
				if names = slices.Concat(names, hidden); errors.Join(err, herr) != nil || want != "" && len(names) != 1 || want == "" && len(names) != 0 {
					t.Errorf("%s, %q, commit %t: left %q", kind, old, commit, names)
				}
			}
		}
	}
}

// A link stays one: what it names is replaced.
func TestOutputLink(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "disk"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Symlink("disk", link)); err != nil {
		t.Fatal(err)
	}
	o, err := create(link)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.WriteString("new"); err != nil {
		t.Fatal(err)
	}
	if err := o.commit(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if fi, lerr := os.Lstat(link); err != nil || lerr != nil || string(got) != "new" || fi.Mode().Type() != fs.ModeSymlink {
		t.Errorf("got %q, %v, link is %v, %v", got, err, fi.Mode(), lerr)
	}
}

// Only what is not zero is written, unit by unit.
func TestWriteSparse(t *testing.T) {
	for _, off := range []int64{0, 100, hole - 1, 3*hole + 7} {
		p := make([]byte, 5*hole+33)
		for _, i := range []int{0, 1, hole, 3*hole + 5, 5*hole + 32} {
			p[i] = 1
			f, err := os.Create(filepath.Join(t.TempDir(), "f"))
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(p))
			if err := errors.Join(f.Truncate(off+int64(len(p))), writeSparse(f, p, off)); err != nil {
				t.Error(err)
			}
			if _, err := f.ReadAt(got, off); err != nil || !slices.Equal(got, p) {
				t.Errorf("at %d, byte %d: other bytes, %v", off, i, err)
			}
			f.Close()
		}
	}
}
