package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
)

// TestPromisesNameTests holds docs/specification.md to its word: every test that it
// names exists.
func TestPromisesNameTests(t *testing.T) {
	root := testenv.ModuleRoot()
	text, err := os.ReadFile(filepath.Join(root, "docs/specification.md"))
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err = filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil || !regexp.MustCompile(`_test\.go$`).MatchString(path) {
			return err
		}
		src, err := os.ReadFile(path)
		for _, m := range declared.FindAllSubmatch(src, -1) {
			have[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w*`).FindAllString(string(text), -1)
	if len(named) == 0 {
		t.Fatal("the specification names no test")
	}
	for _, name := range named {
		if !have[name] {
			t.Errorf("docs/specification.md names %s, which does not exist", name)
		}
	}
}
