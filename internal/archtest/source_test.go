package archtest

import (
	"bytes"
	"go/ast"
	"go/format"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestGofmt(t *testing.T) {
	for _, s := range sources(t) {
		want, err := format.Source(s.text)
		if err != nil {
			t.Errorf("%s: %v", s.path, err)
		} else if !bytes.Equal(s.text, want) {
			t.Errorf("%s is not gofmt'd", s.path)
		}
	}
}

func TestBudgets(t *testing.T) {
	used := map[string]bool{}
	for _, s := range sources(t) {
		fileLimit, funcLimit := maxFile, maxFunc
		if s.test() {
			fileLimit, funcLimit = maxTestFile, maxTestFunc
		}
		if n := bytes.Count(s.text, []byte("\n")); n > fileLimit {
			t.Errorf("%s has %d lines, the budget is %d: give its second subject a file", s.path, n, fileLimit)
		}
		for _, d := range s.file.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			from, to := s.fset.Position(fn.Pos()).Line, s.fset.Position(fn.End()).Line
			name := s.pkg + "." + fn.Name.Name
			if LongFuncs[name] != "" {
				used[name] = used[name] || to-from+1 > funcLimit
			} else if n := to - from + 1; n > funcLimit {
				t.Errorf("%s:%d: %s has %d lines, the budget is %d", s.path, from, fn.Name.Name, n, funcLimit)
			}
		}
	}
	for name := range LongFuncs {
		if !used[name] {
			t.Errorf("LongFuncs excuses %s, which keeps the budget or is gone", name)
		}
	}
}

func TestNames(t *testing.T) {
	for _, s := range sources(t) {
		if slices.Contains(BadNames, strings.TrimSuffix(s.name, "_test")) {
			t.Errorf("%s: package %s says nothing: name it for its noun", s.path, s.name)
		}
	}
}

// exits are the calls that end the process.
var exits = map[string][]string{
	"os":      {"Exit"},
	"syscall": {"Exit"},
	"unix":    {"Exit"},
	"log":     {"Fatal", "Fatalf", "Fatalln", "Panic", "Panicf", "Panicln"},
}

func TestExit(t *testing.T) {
	for _, s := range sources(t) {
		if s.program() {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if fn, ok := n.(*ast.FuncDecl); ok && s.test() && fn.Name.Name == "TestMain" {
				return false
			}
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); ok && slices.Contains(exits[pkg.Name], sel.Sel.Name) {
				t.Errorf("%s: %s.%s: only programs end the process", s.fset.Position(sel.Pos()), pkg.Name, sel.Sel.Name)
			}
			return true
		})
	}
}

// strangers are words that mean something on one machine or to one author only.
var strangers = []*regexp.Regexp{
	regexp.MustCompile(`(^|[^\w.})-])/work/`),
	regexp.MustCompile(`(^|[^\w.})-])/root/(go|work|\.cache|\.config|src)\b`),
	regexp.MustCompile(`\bshared/(fixtures|specs|design|style)`),
	regexp.MustCompile(`\bspecs/[\w-]+\.md\b|\b(design|style|plan)\.md\b`),
	regexp.MustCompile(`(?i)\b(this|later|next|first|earlier) issue\b`),
	regexp.MustCompile(`\b(TODO|FIXME|XXX|HACK)\b`),
}

func TestStrangers(t *testing.T) {
	walk(t, func(path, full string) {
		if strings.HasPrefix(path, "internal/") || strings.Contains("/"+path, "/testdata/") || path == "go.sum" {
			return
		}
		b, err := os.ReadFile(full)
		if err != nil {
			t.Fatal(err)
		}
		if !isText(b) {
			return
		}
		number := 0
		for line := range bytes.Lines(b) {
			number++
			for _, word := range strangers {
				if found := word.Find(line); found != nil {
					t.Errorf("%s:%d: %q means nothing to a reader elsewhere", path, number, found)
				}
			}
		}
	})
}

func TestStrangersMatch(t *testing.T) {
	for _, tc := range []struct {
		line string
		want bool
	}{
		{"see /work/main/x", true},
		{`dir := "/work/main"`, true},
		{"upperdir=/a/upper,workdir=/a/work/x", false},
		{"$dir/work/x", false},
		{"/root/go/pkg", true},
		{"/root/.bashrc is a file of the image", false},
		{"/run/kata-containers/shared/sandboxes", false},
		{"../shared/fixtures/nydus-made", true},
		{"specs/rafs-format.md section 3", true},
		{"docs/performance.md", false},
		{"in a later issue", true},
		{"TODO(me): later", true},
	} {
		got := slices.ContainsFunc(strangers, func(r *regexp.Regexp) bool { return r.MatchString(tc.line) })
		if got != tc.want {
			t.Errorf("%q is a stranger: got %t, want %t", tc.line, got, tc.want)
		}
	}
}
