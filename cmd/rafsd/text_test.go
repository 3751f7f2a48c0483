package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/image"
)

func TestExitCodes(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("image x: %w", err) }
	_, notFound := os.Open(filepath.Join(t.TempDir(), "absent"))
	for _, tc := range []struct {
		err  error
		want int
	}{
		{errors.New("anything"), exitError},
		{notFound, exitError},
		{syscall.ENOSPC, exitError},
		{&net.OpError{Op: "listen", Err: syscall.EADDRINUSE}, exitError},
		{&usageError{notFound}, exitUsage},
		{image.ErrCorrupt, exitRefused},
		{image.ErrUnsupported, exitRefused},
		{image.ErrDigest, exitRefused},
		{blob.ErrDigest, exitRefused},
		{tree.ErrRefused, exitRefused},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, exitSource},
		{&transport.Error{StatusCode: 404}, exitSource},
		{backend.ErrUnavailable, exitSource},
		{backend.ErrDenied, exitSource},
		{context.Canceled, exitInterrupted},
	} {
		if got := exitCode(wrap(tc.err)); got != tc.want {
			t.Errorf("%v: exit code %d, want %d", tc.err, got, tc.want)
		}
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 1023: "1.0 kB", 1024: "1 KiB", 4096: "4 KiB", 1 << 20: "1 MiB",
		16 << 20: "16 MiB", 3_000_000: "3.0 MB", 999_950_000: "1.0 GB", 999_949_999: "999.9 MB", 1<<64 - 1: "18.4 EB", 1 << 63: "8 EiB",
	} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %q, want %q", n, got, want)
		}
	}
}

// Names come from the image: none may drive a terminal.
func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"usr":         "usr",
		"größe 日本":    "größe 日本",
		"a\x1b[2Jb":   `"a\x1b[2Jb"`,
		"line\nbreak": `"line\nbreak"`,
		"\xff\xfe":    `"\xff\xfe"`,
		"del\x7f":     `"del\x7f"`,
		"c1\u009b31m": `"c1\u009b31m"`,
		"back\\slash": "back\\slash",
	} {
		if got := plain(in); got != want {
			t.Errorf("plain(%q) = %s, want %s", in, got, want)
		}
	}
}

func TestParseChunkSize(t *testing.T) {
	for in, want := range map[string]uint32{
		"1MiB": 1 << 20, "0x100000": 1 << 20, "4096": 4096, "4K": 4096, "16M": 16 << 20, "512KiB": 512 << 10,
	} {
		if got, err := parseChunkSize(in); got != want || err != nil {
			t.Errorf("%q: %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "0", "2048", "5000", "32MiB", "-1", "1GiB", "4294967295M", "M", "1 MiB"} {
		if got, err := parseChunkSize(in); err == nil {
			t.Errorf("%q: %d, want an error", in, got)
		}
	}
}

func TestRaiseNoFile(t *testing.T) {
	var before, after syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before) })
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	raiseNoFile(0, log)
	raiseNoFile(before.Max-1, log)
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &after); err != nil || after.Cur != before.Max-1 {
		t.Errorf("limit %d, %v; want %d", after.Cur, err, before.Max-1)
	}
	if out.Len() != 0 {
		t.Errorf("warned: %s", out.String())
	}
	raiseNoFile(1<<62, log)
	if !strings.Contains(out.String(), "going on with what there is") {
		t.Errorf("log %q, want a warning", out.String())
	}
}

// Every image that other software made is read to its end, and the blobs are those
// that its maker named.
func TestInspectFixtures(t *testing.T) {
	fixtures := filepath.Join(testenv.Fixtures(t), "nydus-made", "images")
	outputs, err := filepath.Glob(filepath.Join(fixtures, "*", "output.json"))
	if err != nil || len(outputs) < 30 {
		t.Fatalf("%d images under %s, %v", len(outputs), fixtures, err)
	}
	seen := 0
	for _, output := range outputs {
		b, err := os.ReadFile(output)
		if err != nil {
			t.Fatal(err)
		}
		var made struct {
			Blobs     []string
			FSVersion string `json:"fs_version"`
		}
		if err := json.Unmarshal(b, &made); err != nil {
			t.Fatalf("%s: %v", output, err)
		}
		im, err := image.Open(filepath.Join(filepath.Dir(output), "image.boot"), image.Options{})
		if errors.Is(err, image.ErrUnsupported) || errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", output, err)
			continue
		}
		seen++
		s, err := newSurvey(t.Context(), output, im, 3)
		if err != nil {
			t.Errorf("%s: %v", output, err)
		}
		var ids []string
		for _, blob := range s.Blobs {
			ids = append(ids, blob.ID)
		}
		if got, want := strings.Join(ids, " "), strings.Join(made.Blobs, " "); got != want || fmt.Sprint(s.Version) != made.FSVersion {
			t.Errorf("%s: version %d, blobs %s; want %s, %s", output, s.Version, got, made.FSVersion, want)
		}
		if d := s.Data; d.Chunks == 0 && len(ids) > 0 || d.Compressed > d.Stored+d.Chunks*4096 {
			t.Errorf("%s: data %+v", output, d)
		}
		im.Close()
	}
	if seen < 25 {
		t.Errorf("%d images could be read, want at least 25", seen)
	}
}
