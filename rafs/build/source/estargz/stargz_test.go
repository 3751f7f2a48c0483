package estargz

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// stargz makes an eStargz layer of a tar, as docs/estargz.md of stargz-snapshotter
// has it: the data of each file starts a gzip member, and each chunk of it does. It
// returns the layer and its table of contents.
func stargz(t testing.TB, data []byte, chunkSize int) (layer, toc []byte) {
	t.Helper()
	z := &zipper{t: t}
	var entries []map[string]any
	in := bytes.NewReader(data)
	done := 0
	for r := tar.NewReader(in); ; {
		hdr, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		start := len(data) - in.Len()
		z.write(data[done:start])
		done = start
		e := describe(hdr)
		entries = append(entries, e)
		for off := 0; off < int(hdr.Size); off += chunkSize {
			chunk := data[start+off:][:min(chunkSize, int(hdr.Size)-off)]
			if off > 0 {
				e = map[string]any{"name": hdr.Name, "type": "chunk", "chunkOffset": off}
				entries = append(entries, e)
			}
			if off+len(chunk) < int(hdr.Size) {
				e["chunkSize"] = len(chunk)
			}
			e["offset"] = z.begin()
			e["chunkDigest"] = fmt.Sprintf("sha256:%x", sha256.Sum256(chunk))
			z.write(chunk)
			done = start + off + len(chunk)
		}
	}
	z.write(data[done:])
	z.begin()
	toc, err := json.Marshal(map[string]any{"version": 1, "entries": entries})
	if err != nil {
		t.Fatal(err)
	}
	return z.out.Bytes(), toc
}

func describe(hdr *tar.Header) map[string]any {
	e := map[string]any{
		"name": hdr.Name, "mode": hdr.Mode, "uid": hdr.Uid, "gid": hdr.Gid, "modtime": hdr.ModTime.UTC().Format(time.RFC3339Nano),
		"type": map[byte]string{
			tar.TypeReg: "reg", tar.TypeDir: "dir", tar.TypeSymlink: "symlink", tar.TypeLink: "hardlink",
			tar.TypeChar: "char", tar.TypeBlock: "block", tar.TypeFifo: "fifo",
		}[hdr.Typeflag],
	}
	if hdr.Linkname != "" {
		e["linkName"] = hdr.Linkname
	}
	if hdr.Size > 0 {
		e["size"] = hdr.Size
	}
	if hdr.Devmajor != 0 || hdr.Devminor != 0 {
		e["devMajor"], e["devMinor"] = hdr.Devmajor, hdr.Devminor
	}
	xattrs := map[string][]byte{}
	for k, v := range hdr.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			xattrs[name] = []byte(v)
		}
	}
	if len(xattrs) > 0 {
		e["xattrs"] = xattrs
	}
	return e
}

// zipper writes gzip members one after the other.
type zipper struct {
	t   testing.TB
	out bytes.Buffer
	w   *gzip.Writer
}

// begin ends a member and returns where the next one begins.
func (z *zipper) begin() int {
	if z.w != nil {
		if err := z.w.Close(); err != nil {
			z.t.Fatal(err)
		}
		z.w = nil
	}
	return z.out.Len()
}

func (z *zipper) write(p []byte) {
	if z.w == nil {
		z.w = gzip.NewWriter(&z.out)
	}
	if _, err := z.w.Write(p); err != nil {
		z.t.Fatal(err)
	}
}
