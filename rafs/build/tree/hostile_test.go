package tree

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// Each of these is refused with the name of the entry that is to blame.
func TestRefused(t *testing.T) {
	xattr := func(name, value string) entry {
		return entry{tar.Header{Name: "x", Typeflag: tar.TypeReg, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr." + name: value}}, ""}
	}
	many := map[string]string{}
	for i := range 5 {
		many[fmt.Sprintf("SCHILY.xattr.user.%d", i)] = strings.Repeat("v", 60000)
	}
	small := Limits{Entries: 3, Depth: 4, Meta: 200, Data: 10}
	type layer = []entry
	for _, tc := range []struct {
		name, entry, why string
		limits           Limits
		layers           []layer
	}{
		{"dot dot", "../etc/passwd", `".."`, Limits{}, []layer{{file("../etc/passwd", "")}}},
		{"dot dot inside", "a/../../b", `".."`, Limits{}, []layer{{file("a/../../b", "")}}},
		{"dot dot that stays", "a/../b", `".."`, Limits{}, []layer{{file("a/../b", "")}}},
		{"absolute dot dot", "/../x", `".."`, Limits{}, []layer{{file("/../x", "")}}},
		{"long name", strings.Repeat("n", 256), "256 bytes", Limits{}, []layer{{file(strings.Repeat("n", 256), "")}}},
		{"no name", "", "empty name", Limits{}, []layer{{file("", "")}}},
		{"root that is a file", ".", "want a folder", Limits{}, []layer{{{tar.Header{Name: ".", Typeflag: tar.TypeFifo}, ""}}}},
		{"through a symlink", "d/x", `symlink "d"`, Limits{}, []layer{{symlink("d", "/etc"), file("d/x", "")}}},
		{"folder replaced by a symlink", "d/x", `symlink "d"`, Limits{}, []layer{{dir("d"), symlink("d", "/etc"), file("d/x", "")}}},
		{"through a symlink deep down", "a/b/c/d/", `symlink "a/b"`, Limits{}, []layer{{symlink("a/b", "."), dir("a/b/c/d")}}},
		{"through a lower layer's symlink", "d/x", `symlink "d" of a lower layer`, Limits{}, []layer{{symlink("d", "/etc")}, {file("d/x", "")}}},
		{"whiteout through a lower layer's symlink", "d/.wh.x", `symlink "d"`, Limits{}, []layer{{symlink("d", "/etc")}, {file("d/.wh.x", "")}}},
		{"through a file", "f/x", `"f" is no folder`, Limits{}, []layer{{file("f", ""), file("f/x", "")}}},
		{"through a lower layer's file", "f/x", `"f" is no folder`, Limits{}, []layer{{file("f", "")}, {file("f/x", "")}}},
		{"through a hard link", "l/x", `"l" is no folder`, Limits{}, []layer{{dir("d")}, {link("l", "d/y"), file("l/x", "")}}},
		{"hard link upwards", "l", `".."`, Limits{}, []layer{{link("l", "../../etc/shadow")}}},
		{"absolute hard link", "l", "absolute", Limits{}, []layer{{file("etc/x", ""), link("l", "/etc/x")}}},
		{"hard link to nothing", "l", "does not exist", Limits{}, []layer{{link("l", "x")}}},
		{"hard link to what comes later", "l", "does not exist", Limits{}, []layer{{link("l", "x"), file("x", "")}}},
		{"hard link to itself", "l", "itself", Limits{}, []layer{{file("l", ""), link("l", "./l")}}},
		{"hard links in a circle", "a", "does not exist", Limits{}, []layer{{link("a", "b"), link("b", "a")}}},
		{"hard link to a folder", "l", "to the folder", Limits{}, []layer{{dir("d"), link("l", "d")}}},
		{"hard link to a lower folder", "l", "to the folder", Limits{}, []layer{{dir("d")}, {link("l", "d")}}},
		{"hard link to the root", "l", "to the folder", Limits{}, []layer{{link("l", "./")}}},
		{"hard link through a symlink", "l", "no folder", Limits{}, []layer{{symlink("s", "d"), file("d/f", ""), link("l", "s/f")}}},
		{"hard link through a lower symlink", "l", "does not exist", Limits{}, []layer{{symlink("s", "d"), file("d/f", "")}, {link("l", "s/f")}}},
		{"symlink to nothing", "s", "target of 0 bytes", Limits{}, []layer{{symlink("s", "")}}},
		{"symlink too long", "s", "4096 bytes", Limits{}, []layer{{symlink("s", strings.Repeat("t", 4096))}}},
		{"whiteout of nothing", ".wh.", "whiteout of", Limits{}, []layer{{file(".wh.", "")}}},
		{"whiteout of the folder", "a/.wh..", `whiteout of "."`, Limits{}, []layer{{file("a/.wh..", "")}}},
		{"whiteout of the parent", "a/.wh...", `whiteout of ".."`, Limits{}, []layer{{file("a/.wh...", "")}}},
		{"whiteout as a folder", ".wh.a/b", "used as a folder", Limits{}, []layer{{file(".wh.a/b", "")}}},
		{"opaque as a folder", ".wh..wh..opq/b", "used as a folder", Limits{}, []layer{{file(".wh..wh..opq/b", "")}}},
		{"unknown type", "x", "unknown type", Limits{}, []layer{{{tar.Header{Name: "x", Typeflag: 'V'}, ""}}}},
		{"uid of 33 bits", "x", "uid", Limits{}, []layer{{{tar.Header{Name: "x", Typeflag: tar.TypeReg, Uid: 1 << 32, Format: tar.FormatPAX}, ""}}}},
		{"negative gid", "x", "gid", Limits{}, []layer{{{tar.Header{Name: "x", Typeflag: tar.TypeReg, Gid: -1, Format: tar.FormatGNU}, ""}}}},
		{"device number", "x", "device", Limits{}, []layer{{{tar.Header{Name: "x", Typeflag: tar.TypeChar, Devmajor: 4096}, ""}}}},
		{"xattr too long", "x", "65536 bytes", Limits{}, []layer{{xattr("user.a", strings.Repeat("v", 65536))}}},
		{"xattr name too long", "x", "xattr name", Limits{}, []layer{{xattr("user."+strings.Repeat("n", 251), "")}}},
		{"too many xattrs", "x", "xattrs of more", Limits{}, []layer{{{tar.Header{Name: "x", Typeflag: tar.TypeReg, Format: tar.FormatPAX, PAXRecords: many}, ""}}}},
		{"too many entries", "d", "more than 3 entries", small, []layer{{file("a", ""), file("b", ""), file("c", ""), file("d", "")}}},
		{"too many folders that no entry has", "a/b/c/d", "more than 3 entries", small, []layer{{file("a/b/c/d", "")}}},
		{"too deep", "a/b/c/d/e", "4 folders deep", small, []layer{{file("a/b/c/d/e", "")}}},
		{"too much data", "b", "more than 10 in one layer", small, []layer{{file("a", "123456"), file("b", "12345")}}},
		{"too many names", "b", "more than 200 bytes", small, []layer{{symlink("a", strings.Repeat("t", 150)), symlink("b", strings.Repeat("t", 150))}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var tars [][]byte
			for _, l := range tc.layers {
				tars = append(tars, pack(t, l...))
			}
			_, err := merge(&memory{}, tc.limits, tars...)
			var refused *EntryError
			if !errors.As(err, &refused) || !errors.Is(err, ErrRefused) {
				t.Fatalf("got %v, want an EntryError", err)
			}
			if refused.Name != tc.entry || !strings.Contains(refused.Reason, tc.why) {
				t.Errorf("got entry %q: %s; want %q and %q in it", refused.Name, refused.Reason, tc.entry, tc.why)
			}
		})
	}
}

// A sparse file of a petabyte takes a kilobyte of tar.
func TestSparseBombIsRefused(t *testing.T) {
	// GNU.sparse.size is the size that the file seems to have (pax 0.1 and 1.0).
	map1 := "1\n0\n0\n"
	data := map1 + strings.Repeat("\x00", 512-len(map1))
	bomb := pack(t, entry{tar.Header{Name: "bomb", Typeflag: tar.TypeReg, Format: tar.FormatPAX}, data})
	bomb = setPAX(t, bomb, map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "bomb", "GNU.sparse.realsize": "1125899906842624",
	})
	_, err := merge(&memory{}, Limits{}, bomb)
	var refused *EntryError
	if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "1125899906842624 bytes") {
		t.Errorf("got %v, want it refused for its size", err)
	}
}

// setPAX puts a pax header before the only entry of a tar, since archive/tar
// does not write these keys.
func setPAX(t *testing.T, data []byte, records map[string]string) []byte {
	t.Helper()
	var body string
	for k, v := range records {
		line := " " + k + "=" + v + "\n"
		n := len(line)
		for len(fmt.Sprint(n))+len(line) != n {
			n = len(fmt.Sprint(n)) + len(line)
		}
		body += fmt.Sprint(n) + line
	}
	head := pack(t, entry{tar.Header{Name: "pax", Typeflag: tar.TypeReg}, body})
	blocks := 512 + (len(body)+511)/512*512
	head = head[:blocks]
	head[156] = tar.TypeXHeader
	copy(head[148:156], "        ")
	sum := 0
	for _, c := range head[:512] {
		sum += int(c)
	}
	copy(head[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return append(head, data...)
}

func TestDecompress(t *testing.T) {
	const text = "a tar, plain or not"
	var gz, zs bytes.Buffer
	g := gzip.NewWriter(&gz)
	z, err := zstd.NewWriter(&zs)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{g, z} {
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	skippable := append([]byte{0x5a, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 'x', 'y'}, zs.Bytes()...)
	var halves bytes.Buffer
	for _, half := range []string{text[:5], text[5:]} {
		g.Reset(&halves)
		if _, err := io.WriteString(g, half); err != nil {
			t.Fatal(err)
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range map[string][]byte{
		"plain": []byte(text), "gzip": gz.Bytes(), "gzip of two members": halves.Bytes(),
		"zstd": zs.Bytes(), "zstd after a skippable frame": skippable,
	} {
		r, err := Decompress(bytes.NewReader(data))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := io.ReadAll(r)
		if err != nil || string(got) != text {
			t.Errorf("%s: got %q, %v; want %q", name, got, err, text)
		}
		if err := r.Close(); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
		if name == "plain" {
			continue
		}
		r, err = Decompress(bytes.NewReader(data[:len(data)-3]))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err == nil {
			t.Errorf("%s cut off: got %q and no error", name, got)
		}
	}
	r, err := Decompress(bytes.NewReader([]byte("ab")))
	if got, _ := io.ReadAll(r); err != nil || string(got) != "ab" {
		t.Errorf("two bytes: got %q, %v", got, err)
	}
}
