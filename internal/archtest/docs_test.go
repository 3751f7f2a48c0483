package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
)

var (
	docLine = regexp.MustCompile(`^    ([0-6])  (\S.*)$`)
	// A line of the documented table may end in a remark.
	docRemark = regexp.MustCompile(`\bnever\b.*|\([^)]*\)`)
	docEntry  = regexp.MustCompile(`[^\s,{]+(\{[^}]*\}[^\s,]*)?`)
)

// bare is an entry of either table without what says that sub-packages count too.
func bare(pattern string) string {
	return strings.TrimSuffix(strings.TrimSuffix(pattern, "/..."), "/*")
}

// The table that people read is the one that the tests hold: what the one has on
// a level the other has there, as far as the packages exist.
func TestTableInDocs(t *testing.T) {
	const name = "docs/architecture.md"
	doc, err := os.ReadFile(filepath.Join(testenv.ModuleRoot(), name))
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]int{}
	for line := range strings.Lines(string(doc)) {
		m := docLine.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil {
			continue
		}
		level, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range docEntry.FindAllString(docRemark.ReplaceAllString(m[2], ""), -1) {
			for _, pkg := range expand(entry) {
				documented[bare(pkg)] = level
			}
		}
	}
	held := map[string]int{}
	for pattern, level := range levels(t) {
		held[bare(pattern)] = level
	}
	for pkg, level := range documented {
		if got, ok := held[pkg]; !ok || got != level {
			t.Errorf("%s has %s on level %d, archtest.Table on %d (listed there: %t)", name, pkg, level, got, ok)
		}
	}
	for pkg, level := range held {
		_, err := os.Stat(filepath.Join(testenv.ModuleRoot(), pkg))
		if _, ok := documented[pkg]; !ok && err == nil {
			t.Errorf("%s lacks %s, which is on level %d", name, pkg, level)
		}
	}
}
