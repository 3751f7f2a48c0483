package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// bootstrap reads the bootstrap of an image of rafstest.Core.
func bootstrap(t testing.TB, name string) []byte {
	t.Helper()
	for _, c := range rafstest.Core(t) {
		if c.Name == name {
			data, err := os.ReadFile(c.Bootstrap)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
	}
	t.Fatalf("no image %s", name)
	return nil
}

func report(t testing.TB, data []byte) *Report {
	t.Helper()
	r, err := Reader(context.Background(), bytes.NewReader(data), int64(len(data)), Options{Max: 20})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// agree tells whether check and rafs/image have the same opinion of a bootstrap
// as far as they must: what check accepts, a reader opens.
func agree(data []byte, r *Report) error {
	if len(r.Violations) > 0 {
		return nil
	}
	im, err := image.NewWith(data, image.Options{InlineBlobID: "inline"})
	if errors.Is(err, image.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("check accepts what rafs/image refuses: %w", err)
	}
	if s := im.Super(); s.Inodes != r.Inodes || s.Names != r.Names {
		return fmt.Errorf("check counts %d inodes and %d names, rafs/image %d and %d", r.Inodes, r.Names, s.Inodes, s.Names)
	}
	return nil
}

var tmpHarmless = map[string]int{}

func TestTmpEveryByte(t *testing.T) {
	for _, name := range []string{"v5-layers", "v6-layers"} {
		data := bootstrap(t, name)
		for i := range data {
			was := data[i]
			for _, mask := range []byte{1, 0x80, 0xff} {
				data[i] = was ^ mask
				r := report(t, data)
				if err := agree(data, r); err != nil {
					t.Errorf("%s: byte %#x ^ %#x: %v", name, i, mask, err)
				}
				if len(r.Violations) == 0 {
					fmt.Printf("%s %#x ^%#x accepted %v\n", name, i, mask, r.Notes)
				}
			}
			data[i] = was
		}
	}
}
