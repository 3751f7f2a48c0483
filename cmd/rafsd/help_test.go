package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// programs are the names that the binary goes by.
var programs = []string{"rafsd", "nydus-image", "nydusify"}

// verbs are all commands below root that do something.
func verbs(root *cobra.Command) (out []*cobra.Command) {
	for _, c := range root.Commands() {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		if c.Example != "" || !c.HasSubCommands() {
			out = append(out, c)
		}
		out = append(out, verbs(c)...)
	}
	return out
}

// exampleLines are the command lines of a help text.
func exampleLines(c *cobra.Command) (out []string) {
	text := strings.ReplaceAll(c.Example, "\\\n", " ")
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return out
}

// invocations are the runs of our program in a line of shell, as lists of words.
func invocations(t *testing.T, line string) (out [][]string) {
	t.Helper()
	var words []string
	var word strings.Builder
	quote, quoted := rune(0), false
	flush := func() {
		if word.Len() > 0 || quoted {
			words = append(words, word.String())
		}
		word.Reset()
		quoted = false
	}
	end := func() {
		flush()
		if len(words) > 0 && (words[0] == "rafsd" || words[0] == "nydus-image" || words[0] == "nydusify") {
			out = append(out, words)
		}
		words = nil
	}
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, quoted = r, true
		case r == '|' || r == '&' || r == ';':
			end()
		case r == ' ':
			flush()
		default:
			word.WriteRune(r)
		}
	}
	end()
	if quote != 0 {
		t.Errorf("%s: a quote is open", line)
	}
	return out
}

// Every verb has examples, and every example is a command line that exists.
func TestExamplesParse(t *testing.T) {
	for _, program := range programs {
		seen := 0
		for _, c := range append(verbs(newApp().entry(program)), newApp().entry(program)) {
			lines := exampleLines(c)
			if len(lines) == 0 && !c.Hidden && program != "nydusify" && !strings.HasPrefix(c.CommandPath(), "nydusify") {
				t.Errorf("%s has no examples", c.CommandPath())
			}
			for _, line := range lines {
				runs := invocations(t, line)
				seen += len(runs)
				for _, words := range runs {
					parseExample(t, c.CommandPath(), words)
				}
			}
		}
		if seen == 0 && program != "nydusify" {
			t.Errorf("%s: no examples were found", program)
		}
	}
}

// parseExample does what a run does before the verb begins.
func parseExample(t *testing.T, of string, words []string) {
	t.Helper()
	root := newApp().entry(words[0])
	root.SetOut(io.Discard)
	args := words[1:]
	if words[0] == "nydusify" {
		args = doubleDashes(root, args)
	}
	cmd, rest, err := root.Find(args)
	if err == nil {
		err = cmd.ParseFlags(rest)
	}
	if err == nil {
		err = cmd.ValidateArgs(cmd.Flags().Args())
	}
	if err == nil && !cmd.Runnable() {
		t.Errorf("help of %s: %q is no command", of, words)
	}
	if err != nil {
		t.Errorf("help of %s: %q: %v", of, words, err)
	}
}

// exampleFiles are what the examples of images in files take for granted.
const exampleFiles = `
mkdir -p blobs rootfs/usr/bin rootfs/etc bootstraps python:3.11 python:3.12
echo python > rootfs/usr/bin/python3
echo os > rootfs/etc/os-release
tar -C rootfs -cf layer1.tar etc
tar -C rootfs -cf layer2.tar usr
tar -C rootfs -czf layer.tar.gz .
rafsd image create -l error -B new.boot -D blobs rootfs
cp new.boot bootstraps/first
cp new.boot python:3.11/image.boot
cp new.boot python:3.12/image.boot
echo '{"version":"v1","files":[{"path":"/etc/os-release"}]}' > files.json
for i in 1 2; do rafsd image create -l error -t tar-rafs --whiteout-spec none -B layer$i.boot -D blobs layer$i.tar; done
`

// What needs nothing but files works when it is pasted, in the order in which the help
// of 'rafsd image' lists its verbs.
func TestExamplesRun(t *testing.T) {
	dir := t.TempDir()
	shell := func(line string) {
		t.Helper()
		cmd := exec.Command("sh", "-ec", line)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
	}
	shell(exampleFiles)
	root := newApp().entry("rafsd")
	image, _, err := root.Find([]string{"image"})
	must(t, err)
	inspect, _, err := root.Find([]string{"inspect"})
	must(t, err)
	n := 0
	for _, verb := range []string{"", "create", "merge", "check", "inspect", "stat", "unpack", "export", "compact", "optimize", "chunkdict"} {
		var cmds []*cobra.Command
		if verb == "" {
			cmds = append(verbs(inspect), inspect, image)
		} else {
			c, _, err := image.Find([]string{verb})
			must(t, err)
			cmds = append(verbs(c), c)
		}
		for _, c := range cmds {
			for _, line := range exampleLines(c) {
				if strings.Contains(line, "registry.example.com") || strings.HasPrefix(line, "mount ") {
					continue // needs a registry, or root
				}
				line, _, _ = strings.Cut(line, " | jq") // not everybody has it
				if c == image || verb != "" {
					shell(line)
				} else {
					defer shell(line) // when there is an image
				}
				n++
			}
		}
	}
	if n < 20 {
		t.Errorf("%d examples were run, want 20 at least", n)
	}
	for _, made := range []string{"image.boot", "image.erofs", "rootfs.tar", "fast.boot", "dict.boot", "layer.blob", "layer.meta", "stat.json", "result.json"} {
		if _, err := os.Stat(filepath.Join(dir, made)); err != nil {
			t.Error(err)
		}
	}
}
