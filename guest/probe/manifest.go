package probe

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// maxLine bounds a manifest's line: 64 KiB of extended attributes in hexadecimal
// digits, and names.
const maxLine = 1 << 20

// ReadManifest reads one entry a line.
func ReadManifest(r io.Reader) ([]Entry, error) {
	var out []Entry
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxLine)
	for sc.Scan() {
		var e Entry
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("manifest line %d: %w", len(out)+1, err)
		}
		out = append(out, e)
	}
	return out, sc.Err()
}

// Tree collects what Walk finds.
func Tree(root string) ([]Entry, error) {
	var out []Entry
	err := Walk(root, func(e Entry) error {
		out = append(out, e)
		return nil
	})
	return out, err
}

// Diff compares two trees whatever the order of their entries, and returns a line
// for each path that is missing, too many or different, in the order of paths. No
// lines mean that the trees are equal.
func Diff(got, want []Entry) []string {
	var out []string
	have, twice := index(got)
	for _, p := range twice {
		out = append(out, fmt.Sprintf("%s: listed twice", p))
	}
	wanted, twice := index(want)
	for _, p := range twice {
		out = append(out, fmt.Sprintf("%s: listed twice in the wanted tree", p))
	}
	for p, w := range wanted {
		g, found := have[p]
		if !found {
			out = append(out, fmt.Sprintf("%s: missing", p))
			continue
		}
		if d := fields(g, w); d != "" {
			out = append(out, fmt.Sprintf("%s: %s", p, d))
		}
	}
	for p := range have {
		if _, found := wanted[p]; !found {
			out = append(out, fmt.Sprintf("%s: not wanted", p))
		}
	}
	slices.Sort(out)
	return out
}

func index(list []Entry) (byPath map[string]Entry, twice []string) {
	byPath = make(map[string]Entry, len(list))
	for _, e := range list {
		if _, found := byPath[e.Path]; found {
			twice = append(twice, e.Path)
		}
		byPath[e.Path] = e
	}
	return byPath, twice
}

// fields names the fields that differ.
func fields(got, want Entry) string {
	var out []string
	for _, f := range []struct {
		name      string
		got, want any
	}{
		{"mode", got.Mode, want.Mode},
		{"uid", got.UID, want.UID},
		{"gid", got.GID, want.GID},
		{"nlink", got.Nlink, want.Nlink},
		{"size", got.Size, want.Size},
		{"mtime", got.Mtime, want.Mtime},
		{"mtime_nsec", got.MtimeNsec, want.MtimeNsec},
		{"rdev", got.Rdev, want.Rdev},
		{"link", got.Link, want.Link},
		{"sha256", got.SHA256, want.SHA256},
	} {
		if f.got != f.want {
			out = append(out, fmt.Sprintf("%s %v, want %v", f.name, f.got, f.want))
		}
	}
	if !maps.Equal(got.Xattrs, want.Xattrs) {
		out = append(out, fmt.Sprintf("xattrs %v, want %v", got.Xattrs, want.Xattrs))
	}
	return strings.Join(out, "; ")
}
