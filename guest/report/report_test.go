package report

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

func TestParameter(t *testing.T) {
	for _, tc := range []struct {
		name string
		c    Config
		long bool
	}{
		{"nothing", Config{}, false},
		{"tag", Config{Tag: "image"}, false},
		{"quotes", Config{Tag: "a b", Run: &Command{
			Args: []string{"/bin/sh", "-c", `echo "$HOME" 'x y' \n -- init=/bin/sh`},
			Env:  []string{"PATH=/bin", "EMPTY=", "Ü=ä\n"}, Dir: "/tmp dir", User: "nobody:nogroup",
		}}, false},
		{"long", Config{Run: &Command{Args: []string{strings.Repeat("x", 2000)}}}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			word, line, err := tc.c.Parameter()
			if err != nil {
				t.Fatal(err)
			}
			if strings.ContainsAny(word, " \t\n\"'") || len(word) > maxParam+len(param) {
				t.Errorf("parameter %q of %d bytes would not survive a command line", word, len(word))
			}
			got, port, err := ParseCmdline("console=ttyS0 quiet " + word + " panic=-1\n")
			if err != nil {
				t.Fatal(err)
			}
			if port != tc.long || (line != nil) != tc.long {
				t.Fatalf("over the port: %t with a line of %d bytes, want %t", port, len(line), tc.long)
			}
			if port {
				if err := json.Unmarshal(line, &got); err != nil {
					t.Fatal(err)
				}
			}
			if !reflect.DeepEqual(got, tc.c) {
				t.Errorf("got %+v, want %+v", got, tc.c)
			}
		})
	}
}

func TestParseCmdlineRefuses(t *testing.T) {
	for _, tc := range []struct{ name, cmdline, want string }{
		{"absent", "console=ttyS0 xrafsd.config=e30", "no rafsd.config"},
		{"alphabet", "rafsd.config=e3+0", "illegal base64"},
		{"json", "rafsd.config=e30x", "invalid"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := ParseCmdline(tc.cmdline)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestConfigTooLong(t *testing.T) {
	_, _, err := Config{Tag: strings.Repeat("x", MaxLine)}.Parameter()
	if err == nil {
		t.Errorf("a configuration longer than a line was accepted")
	}
}
