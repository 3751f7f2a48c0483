package rootfs

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

// whiteout marks a name that a layer removes (OCI image specification, "Whiteouts").
const whiteout = ".wh."

// difference writes the layer that makes the tree of the tar upper out of that of
// lower: what is new or not as it was, whole, and a whiteout for what has gone.
func difference(w io.Writer, lower, upper string) error {
	before, err := summarize(lower)
	if err != nil {
		return err
	}
	after, err := summarize(upper)
	if err != nil {
		return err
	}
	out := tar.NewWriter(w)
	if err := whiteouts(out, before, after); err != nil {
		return err
	}
	// All names of an inode go together, so that they stay one.
	changed := map[string]bool{}
	for name, e := range after {
		if before[name] != e {
			changed[e.inode(name)] = true
		}
	}
	err = each(upper, func(h *tar.Header, body io.Reader) error {
		name := path.Clean(h.Name)
		if !changed[after[name].inode(name)] {
			return nil
		}
		if err := out.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		_, err := io.Copy(out, body)
		return err
	})
	return errors.Join(err, out.Close())
}

// whiteouts removes what is in before and not in after, folders whole.
func whiteouts(out *tar.Writer, before, after map[string]summary) error {
	var gone []string
	for name := range before {
		if _, there := after[name]; !there {
			gone = append(gone, name)
		}
	}
	slices.Sort(gone)
	for _, name := range gone {
		if _, there := after[path.Dir(name)]; !there && path.Dir(name) != "." {
			continue // goes with its folder
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: path.Join(path.Dir(name), whiteout+path.Base(name)), Mode: 0o644}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
	}
	return nil
}

// summary is what tells one entry of a tar from another.
type summary struct {
	sum  [32]byte
	link string // target of a hard link
}

// inode is the name that the inode of an entry has its content under.
func (s summary) inode(name string) string {
	if s.link != "" {
		return s.link
	}
	return name
}

func summarize(file string) (map[string]summary, error) {
	all := map[string]summary{}
	err := each(file, func(h *tar.Header, body io.Reader) error {
		sum := sha256.New()
		fmt.Fprintf(sum, "%c %o %d %d %d %d %d %q", h.Typeflag, h.Mode, h.Uid, h.Gid, h.ModTime.UnixNano(), h.Devmajor, h.Devminor, h.Linkname)
		for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			if strings.HasPrefix(key, "SCHILY.xattr.") {
				fmt.Fprintf(sum, " %q=%q", key, h.PAXRecords[key])
			}
		}
		if _, err := io.Copy(sum, body); err != nil {
			return err
		}
		s := summary{sum: [32]byte(sum.Sum(nil))}
		if h.Typeflag == tar.TypeLink {
			s.link = path.Clean(h.Linkname)
		}
		all[path.Clean(h.Name)] = s
		return nil
	})
	return all, err
}

func each(file string, f func(h *tar.Header, body io.Reader) error) error {
	r, err := os.Open(file)
	if err != nil {
		return err
	}
	defer r.Close()
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := f(h, t); err != nil {
			return err
		}
	}
}
