package archtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
)

// The table that people read is the one that the tests hold.
func TestTableInDocs(t *testing.T) {
	const name = "docs/architecture.md"
	doc, err := os.ReadFile(filepath.Join(testenv.ModuleRoot(), name))
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for line := range strings.Lines(string(doc)) {
		have[strings.Join(strings.Fields(line), " ")] = true
	}
	for line := range strings.Lines(strings.TrimSpace(Table)) {
		if want := strings.Join(strings.Fields(line), " "); !have[want] {
			t.Errorf("%s lacks the line %q of archtest.Table", name, want)
		}
	}
}
