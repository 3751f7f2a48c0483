package archtest

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
)

const modulePath = "github.com/rafsd/rafsd"

// source is one Go file of the module.
type source struct {
	path string // relative to the module, with slashes
	pkg  string // folder of path: the package's import path inside the module
	name string // of the package clause
	text []byte
	fset *token.FileSet
	file *ast.File
}

func (s *source) test() bool { return strings.HasSuffix(s.path, "_test.go") }

// program reports whether the file belongs to a program, which may end itself.
func (s *source) program() bool {
	return s.name == "main" && matchAny(s.pkg, []string{"cmd/...", "guest/...", "e2e/..."})
}

// imports returns the import paths of the file.
func (s *source) imports() []string {
	var out []string
	for _, spec := range s.file.Imports {
		if path, err := strconv.Unquote(spec.Path.Value); err == nil {
			out = append(out, path)
		}
	}
	return out
}

// inModule returns an import path relative to the module.
func inModule(path string) (string, bool) {
	return strings.CutPrefix(path, modulePath+"/")
}

// walk calls visit for each regular file of the checkout that belongs to this
// module: neither in hidden folders nor in build output nor in nested modules.
func walk(t *testing.T, visit func(path, full string)) {
	t.Helper()
	root := testenv.ModuleRoot()
	err := filepath.WalkDir(root, func(full string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, full)
		if err != nil || rel == "." {
			return err
		}
		if d.IsDir() {
			_, nested := os.Stat(filepath.Join(full, "go.mod"))
			if strings.HasPrefix(d.Name(), ".") && d.Name() != ".ci" || rel == "bin" || nested == nil {
				return filepath.SkipDir
			}
			return nil
		}
		if d.Type().IsRegular() {
			visit(filepath.ToSlash(rel), full)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sources parses every Go file outside testdata.
func sources(t *testing.T) []*source {
	t.Helper()
	var out []*source
	walk(t, func(path, full string) {
		if !strings.HasSuffix(path, ".go") || strings.Contains("/"+path, "/testdata/") {
			return
		}
		text, err := os.ReadFile(full)
		if err != nil {
			t.Fatal(err)
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Errorf("%v", err)
			return
		}
		dir, _, found := cutLast(path, "/")
		if !found {
			dir = "."
		}
		out = append(out, &source{path, dir, file.Name.Name, text, fset, file})
	})
	if len(out) == 0 {
		t.Fatal("no Go files found")
	}
	return out
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// match reports whether a package is what a pattern of the table names.
func match(pkg, pattern string) bool {
	if base, tree := strings.CutSuffix(pattern, "/..."); tree {
		return pkg == base || strings.HasPrefix(pkg, base+"/")
	}
	return pkg == pattern
}

func matchAny(pkg string, patterns []string) bool {
	for _, p := range patterns {
		if match(pkg, p) {
			return true
		}
	}
	return false
}

// expand turns "a/{b,c}/d" into "a/b/d" and "a/c/d".
func expand(pattern string) []string {
	before, rest, found := strings.Cut(pattern, "{")
	if !found {
		return []string{pattern}
	}
	list, after, _ := strings.Cut(rest, "}")
	var out []string
	for alt := range strings.SplitSeq(list, ",") {
		out = append(out, expand(before+alt+after)...)
	}
	return out
}

// text reports whether a file's bytes are text that a person reads.
func isText(b []byte) bool { return !bytes.ContainsRune(b[:min(len(b), 4096)], 0) }
