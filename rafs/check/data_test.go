package check

import (
	"bytes"
	"context"
	"testing"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec/xts"
	"github.com/rafsd/rafsd/rafs/layout"
)

// Eighteen bytes of a file that look like a short piece with its padding are what
// they are: only their digest can tell.
func TestLooksLikePadding(t *testing.T) {
	key, err := xts.NewKey([xts.KeySize]byte{1, 31: 2}, [xts.IVSize]byte{3})
	if err != nil {
		t.Fatal(err)
	}
	for _, plain := range []string{"15 bytes of text\x01\x78\x90"[1:], "text\x0c\x0c\x0c\x0c\x0c\x0c\x0c\x0c\x0c\x0c\x0c\x0c\x78\x90", "short", "eighteen bytes now"} {
		stored := key.Encrypt(nil, []byte(plain))
		c := &checker{ctx: context.Background(), src: &source{}, opts: Options{Max: 10}, report: &Report{}}
		d := newChunkData(&object{Blob: &readerBlob{bytes.NewReader(stored), int64(len(stored))}, c: c, name: "blob"}, blob.CompressorNone, blob.DigesterBlake3)
		d.key = key
		d.check(&layout.ChunkRecord{
			Digest: blob.DigesterBlake3.Sum([]byte(plain)), Flags: layout.ChunkEncrypted,
			CompressedSize: uint32(len(stored)), UncompressedSize: uint32(len(plain)),
		}, nil)
		if c.err != nil || c.report.Err() != nil {
			t.Errorf("%q: got %v, %v", plain, c.err, c.report.Err())
		}
	}
}
