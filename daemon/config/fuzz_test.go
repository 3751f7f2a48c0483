package config

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/internal/testenv"
)

// FuzzParse holds that what is accepted has a canonical form, which is accepted
// without a warning, means the same and is its own canonical form; and that what
// is refused says why.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob(filepath.Join(testenv.ModuleRoot(), "configs", "*.*"))
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(registryV1))
	f.Add([]byte(registryV2))
	f.Add([]byte("version = 2\nbackend = {type = \"localfs\", localfs = {dir = \"/b\"}}\nrafsd = {connections = 1}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, _, err := Parse(data)
		if err != nil {
			if c != nil || err.Error() == "" {
				t.Fatalf("refused with %v and %q", c, err)
			}
			return
		}
		canonical := c.Encode(true)
		again, notes, err := Parse(canonical)
		if err != nil {
			t.Fatalf("canonical form refused: %v\n%s", err, canonical)
		}
		for _, n := range notes {
			if n.Level >= slog.LevelWarn && n.Key != "backend.registry.skip_verify" && n.Key != "backend.registry.proxy" {
				t.Errorf("canonical form warned of: %v", n)
			}
		}
		if diff := cmp.Diff(c, again, same); diff != "" {
			t.Errorf("canonical form means something else (-parsed +again):\n%s", diff)
		}
		if b := again.Encode(true); !bytes.Equal(b, canonical) {
			t.Errorf("canonical form of the canonical form:\n%s\nwant\n%s", b, canonical)
		}
	})
}
