package main

import (
	"strings"
	"testing"
)

func TestSummary(t *testing.T) {
	const start = `{"Action":"start","Package":"m/p"}` + "\n"
	test := func(action, name string, output ...string) string {
		text := `{"Action":"run","Package":"m/p","Test":"` + name + `"}` + "\n"
		for _, o := range output {
			text += `{"Action":"output","Package":"m/p","Test":"` + name + `","Output":"` + o + `\n"}` + "\n"
		}
		if action != "" {
			text += `{"Action":"` + action + `","Package":"m/p","Test":"` + name + `","Elapsed":0.1}` + "\n"
		}
		return text
	}
	end := func(action string) string { return `{"Action":"` + action + `","Package":"m/p","Elapsed":1}` + "\n" }
	for _, tc := range []struct {
		name, input string
		strict, ok  bool
		want        []string
		not         string
	}{
		{"passes", start + test("pass", "A", "quiet") + end("pass"), true, true,
			[]string{"ok    m/p", "1 passed, 0 failed, 0 skipped"}, "quiet"},
		{"fails", start + test("pass", "A") + test("fail", "B", "    b_test.go:3: got 1") + end("fail"), false, false,
			[]string{"got 1", "FAIL  m/p", "failed   m/p.B", "1 passed, 1 failed, 0 skipped"}, "(the package)"},
		{"skips", start + test("pass", "A") + test("skip", "B", "    b_test.go:3: needs root") + end("pass"), false, true,
			[]string{"skipped  m/p.B: needs root", "1 passed, 0 failed, 1 skipped"}, "failed   "},
		{"skips where it must not", start + test("pass", "A") + test("skip", "B", "x") + end("pass"), true, false,
			[]string{"no reason given", "1 passed, 0 failed, 1 skipped"}, "failed   "},
		{"nothing ran", start + end("pass"), false, false, []string{"0 passed, 0 failed, 0 skipped"}, "failed   "},
		{"subtests", start + `{"Action":"run","Package":"m/p","Test":"A"}` + "\n" + test("pass", "A/x") + test("fail", "A/y") +
			`{"Action":"fail","Package":"m/p","Test":"A"}` + "\n" + end("fail"), false, false,
			[]string{"failed   m/p.A/y", "1 passed, 1 failed, 0 skipped"}, "failed   m/p.A\n"},
		{"does not build", `{"ImportPath":"m/p","Action":"build-output","Output":"p.go:1: no\n"}` + "\n" + start + end("fail"), false, false,
			[]string{"p.go:1: no", "failed   m/p (the package)", "0 passed, 1 failed, 0 skipped"}, ""},
		{"crashes", start + test("", "A", "panic: oh") + end("fail"), false, false,
			[]string{"panic: oh", "0 passed, 1 failed, 0 skipped"}, ""},
		{"go itself fails", "go: no such tool\n", false, false, []string{"go: no such tool", "0 passed"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			s := &summary{out: &out, output: map[string][]string{}, parents: map[string]bool{}}
			if err := s.read(strings.NewReader(tc.input)); err != nil {
				t.Fatal(err)
			}
			if got := s.finish(tc.strict); got != tc.ok {
				t.Errorf("all is well: %t, want %t", got, tc.ok)
			}
			for _, w := range tc.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("prints %q, want %q in it", out.String(), w)
				}
			}
			if tc.not != "" && strings.Contains(out.String(), tc.not) {
				t.Errorf("prints %q, want no %q in it", out.String(), tc.not)
			}
		})
	}
}
