//go:build !race

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/rafs/build/tree/treetest"
)

const (
	// peakLimit is what a command may take of memory, in bytes, whatever the image.
	peakLimit = 64 << 20
	// peakSlack is how much more it may take for four times the entries: what is
	// collected as garbage, and when, differs from run to run.
	peakSlack = 14 << 20
)

// No command that makes or reads images takes more memory for more entries.
// RAFSD_ENTRIES=500000 measures larger images.
func TestPeakMemory(t *testing.T) {
	entries := 60_000
	if s := os.Getenv("RAFSD_ENTRIES"); s != "" {
		var err error
		if entries, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	for _, version := range []string{"5", "6"} {
		small := commandPeaks(t, version, entries/4)
		for what, peak := range commandPeaks(t, version, entries) {
			t.Logf("v%s %s: %d MiB for %d entries, %d MiB for %d", version, what, small[what]>>20, entries/4, peak>>20, entries)
			if peak > peakLimit || peak > small[what]+peakSlack {
				t.Errorf("v%s %s: %d bytes for %d entries, %d for %d; want at most %d, and %d more",
					version, what, peak, entries, small[what], entries/4, peakLimit, peakSlack)
			}
		}
	}
}

// commandPeaks runs commands on an image, and returns the memory that each took.
func commandPeaks(t *testing.T, version string, entries int) map[string]int64 {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for i, n := range []int{entries, entries / 10} {
		f, err := os.Create(at(fmt.Sprintf("%d.tar", i)))
		if err != nil {
			t.Fatal(err)
		}
		if err := (treetest.Shape{Seed: uint64(i), Entries: n, Bytes: int64(n) * 1500}).Write(f); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	list, err := json.Marshal(map[string]any{"version": "v1", "files": []any{map[string]string{"path": "/no such file"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("list.json"), list, 0o600); err != nil {
		t.Fatal(err)
	}
	peaks := map[string]int64{}
	for _, c := range []struct{ what, args string }{
		{"create", "create -v V -t tar-rafs -B @0.boot -D @. @0.tar"},
		{"create", "create -v V -t tar-rafs -B @1.boot -D @. @1.tar"},
		{"merge", "merge -B @m.boot @0.boot @1.boot"},
		{"check", "check @m.boot"},
		{"stat", "stat -B @m.boot -J @stat.json"},
		{"inspect", "inspect -R blobs @m.boot"},
		{"unpack", "unpack -D @. --output @out.tar @m.boot"},
		{"export", "export --block -D @. -B @m.boot -O @disk"},
		{"chunkdict", "chunkdict generate --min-images 1 -B @d.boot @0.boot @1.boot"},
		{"create with a dictionary", "create -v V -t tar-rafs --chunk-dict bootstrap=@d.boot -B @x.boot -D @. @1.tar"},
		{"create with a parent", "create -v V -t tar-rafs --parent-bootstrap @0.boot -B @y.boot -D @. @1.tar"},
		{"optimize", "optimize -B @m.boot -p @list.json -D @. --output-blob-dir @. -O @o.boot"},
		{"compact", "compact -B @m.boot -D @. --layers-to-compact 0 --compact-blob-size 8000000000 --max-compact-size 9000000000 -O @c.boot"},
	} {
		args := []string{"image"}
		for _, a := range strings.Fields(c.args) {
			if a == "V" {
				a = version
			}
			args = append(args, strings.Replace(a, "@", dir+"/", 1))
		}
		peaks[c.what] = max(peaks[c.what], commandPeak(t, args...))
	}
	return peaks
}

func commandPeak(t *testing.T, args ...string) int64 {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "rafsd-measured")
	if err := os.Symlink(self(t), bin); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, args...)
	cmd.Env = append(os.Environ(), "RAFSD_PEAK="+bin+".peak")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	data, err := os.ReadFile(bin + ".peak")
	if err != nil {
		t.Fatal(err)
	}
	kib, err := strconv.ParseInt(string(data), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
