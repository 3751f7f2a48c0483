package rafstest

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"testing"
)

// maxDifferences is how many entries Compare names before it only counts.
const maxDifferences = 20

// Compare fails the test for each entry that is missing, too many, or not as
// wanted. got may come in any order; an error of it ends the test.
func Compare(t testing.TB, want []Entry, got iter.Seq2[Entry, error]) {
	t.Helper()
	diffs := Diff(want, got)
	for i, d := range diffs {
		if i == maxDifferences {
			t.Errorf("... and %d more", len(diffs)-i)
			break
		}
		t.Error(d)
	}
}

// Diff says how got differs from want, a sentence an entry.
func Diff(want []Entry, got iter.Seq2[Entry, error]) []string {
	left := make(map[string]Entry, len(want))
	for _, e := range want {
		left[e.Path] = e
	}
	var out []string
	seen := map[string]bool{}
	for e, err := range got {
		if err != nil {
			out = append(out, fmt.Sprintf("%q: %v", e.Path, err))
			delete(left, e.Path)
			continue
		}
		w, ok := left[e.Path]
		switch {
		case seen[e.Path]:
			out = append(out, fmt.Sprintf("%q: there twice", e.Path))
		case !ok:
			out = append(out, fmt.Sprintf("%q: not wanted (mode %o)", e.Path, e.Mode))
		default:
			if d := diffEntry(&w, &e); d != "" {
				out = append(out, fmt.Sprintf("%q:%s", e.Path, d))
			}
		}
		seen[e.Path] = true
		delete(left, e.Path)
	}
	for _, path := range slices.Sorted(maps.Keys(left)) {
		out = append(out, fmt.Sprintf("%q: missing", path))
	}
	return out
}

func diffEntry(want, got *Entry) string {
	d := ""
	field := func(name string, got, want any) {
		if got != want {
			d += fmt.Sprintf(" %s = %v, want %v;", name, got, want)
		}
	}
	field("mode", fmt.Sprintf("%o", got.Mode), fmt.Sprintf("%o", want.Mode))
	field("uid", got.UID, want.UID)
	field("gid", got.GID, want.GID)
	field("mtime", got.Mtime, want.Mtime)
	field("mtime_nsec", got.MtimeNsec, want.MtimeNsec)
	field("rdev", got.Rdev, want.Rdev)
	field("link", got.Link, want.Link)
	field("sha256", got.SHA256, want.SHA256)
	if !want.IsDir() {
		field("nlink", got.Nlink, want.Nlink)
		field("size", got.Size, want.Size)
	}
	for name, value := range want.Xattrs {
		if v, ok := got.Xattrs[name]; !ok {
			d += fmt.Sprintf(" xattr %q missing;", name)
		} else if v != value {
			d += fmt.Sprintf(" xattr %q = %x, want %x;", name, v, value)
		}
	}
	for name := range got.Xattrs {
		if _, ok := want.Xattrs[name]; !ok {
			d += fmt.Sprintf(" xattr %q not wanted;", name)
		}
	}
	return d
}
