package folder

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/build/tree"
)

// over reads two folders as layers and lists the paths of both together.
func over(t *testing.T, low, up string, o Options) ([]string, error) {
	t.Helper()
	o.TempDir = t.TempDir()
	var layers []*tree.Layer
	for i, d := range []string{low, up} {
		opts := o
		if i == 0 {
			opts.Whiteouts = tree.WhiteoutNone
		}
		l, err := Read(context.Background(), d, &contents{}, opts)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	tr, err := tree.Merge(context.Background(), o.TempDir, layers...)
	must(t, err)
	defer tr.Close()
	var got []string
	paths := map[tree.ID]string{}
	for id := tree.Root + 1; id < tree.ID(tr.Len()); id++ {
		n, err := tr.Node(id)
		must(t, err)
		paths[id] = strings.TrimPrefix(paths[n.Parent]+"/"+n.Name, "/")
		line := paths[id]
		for _, x := range n.Xattrs {
			line += " " + x.Name
		}
		got = append(got, line)
	}
	return got, nil
}

func TestWhiteouts(t *testing.T) {
	testenv.NeedsRoot(t)
	low := t.TempDir()
	for _, name := range []string{"gone", "stays", "d/1", "d/2", "o/1", "o/sub/2"} {
		put(t, low, name, "x")
	}
	oci := t.TempDir()
	for _, name := range []string{".wh.gone", "d/.wh.1", "o/.wh..wh..opq", "o/new", ".wh..wh.plnk"} {
		put(t, oci, name, "")
	}
	overlay := t.TempDir()
	put(t, overlay, "o/new", "")
	put(t, overlay, "d/1", "")
	must(t,
		unix.Mknod(filepath.Join(overlay, "gone"), unix.S_IFCHR, 0),
		unix.Setxattr(filepath.Join(overlay, "o"), "trusted.overlay.opaque", []byte("y"), 0),
		unix.Setxattr(filepath.Join(overlay, "o"), "trusted.overlay.origin", []byte("handle"), 0),
		unix.Setxattr(filepath.Join(overlay, "o"), "trusted.other", nil, 0),
		unix.Setxattr(filepath.Join(overlay, "d"), "trusted.overlay.opaque", []byte("x"), 0),
		unix.Setxattr(filepath.Join(overlay, "d/1"), "trusted.overlay.whiteout", nil, 0),
	)
	user := t.TempDir()
	put(t, user, "o/new", "")
	put(t, user, "d/1", "")
	put(t, user, "gone", "")
	must(t,
		unix.Setxattr(filepath.Join(user, "o"), "user.overlay.opaque", []byte("y"), 0),
		unix.Setxattr(filepath.Join(user, "o"), "user.other", nil, 0),
		unix.Setxattr(filepath.Join(user, "d/1"), "user.overlay.whiteout", nil, 0),
		unix.Setxattr(filepath.Join(user, "gone"), "user.overlay.whiteout", nil, 0),
	)
	for _, tc := range []struct {
		name string
		up   string
		spec tree.Whiteouts
		want []string
	}{
		{"oci", oci, tree.WhiteoutOCI, []string{"d", "d/2", "o", "o/new", "stays"}},
		{"overlay", overlay, tree.WhiteoutOverlay, []string{"d", "d/2", "o trusted.other", "o/new", "stays"}},
		{"overlay without privileges", user, tree.WhiteoutOverlay, []string{"d", "d/2", "o user.other", "o/new", "stays"}},
		{"none", oci, tree.WhiteoutNone, []string{
			".wh..wh.plnk", ".wh.gone", "d", "d/.wh.1", "d/1", "d/2", "gone", "o", "o/.wh..wh..opq", "o/1", "o/new", "o/sub", "o/sub/2", "stays",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := over(t, low, tc.up, Options{Whiteouts: tc.spec})
			must(t, err)
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// What an upper folder has only half of cannot become a layer.
func TestOverlayHalves(t *testing.T) {
	testenv.NeedsRoot(t)
	for _, x := range []string{"trusted.overlay.redirect", "trusted.overlay.metacopy"} {
		d := t.TempDir()
		p := put(t, d, "a/f", "x")
		if x == "trusted.overlay.redirect" {
			p = filepath.Dir(p)
		}
		must(t, unix.Setxattr(p, x, []byte("/b"), 0))
		_, err := read(t, d, &contents{}, Options{Whiteouts: tree.WhiteoutOverlay})
		if !errors.Is(err, tree.ErrRefused) || !strings.Contains(err.Error(), x) || !strings.Contains(err.Error(), `"a`) {
			t.Errorf("%s: got %v, want it refused with its name", x, err)
		}
		if _, err := read(t, d, &contents{}, Options{}); err != nil {
			t.Errorf("%s: %v, want it kept where it means nothing", x, err)
		}
	}
}

func TestBadWhiteouts(t *testing.T) {
	for _, name := range []string{".wh.", ".wh..", ".wh..."} {
		d := t.TempDir()
		put(t, d, "a/"+name, "")
		_, err := read(t, d, &contents{}, Options{Whiteouts: tree.WhiteoutOCI})
		if !errors.Is(err, tree.ErrRefused) || !strings.Contains(err.Error(), "a/"+name) {
			t.Errorf("%s: got %v, want it refused with its name", name, err)
		}
	}
}

func TestNoOwner(t *testing.T) {
	testenv.NeedsRoot(t)
	d := t.TempDir()
	must(t, os.Chown(put(t, d, "f", "x"), 5, 6))
	tr, err := read(t, d, &contents{}, Options{NoOwner: true})
	must(t, err)
	if n, _, err := tr.Lookup("f"); err != nil || n.UID != 0 || n.GID != 0 {
		t.Errorf("got %d:%d, error %v; want 0:0", n.UID, n.GID, err)
	}
}
