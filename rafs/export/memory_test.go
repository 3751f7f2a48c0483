package export_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/rafsd/rafsd/rafs/build/tree/treetest"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// peakLimit is what a process may take that exports, in bytes, beside the image's
// metadata, which lies in memory as a whole; of v5 made a disk, the new one, too.
var peakLimit int64 = 64 << 20

// raced tells whether the race detector is on.
var raced bool

// A process that exports stays below the limit however large the image is.
// RAFSD_LAYER=ENTRIES,BYTES measures another one.
func TestPeakMemory(t *testing.T) {
	if dir := os.Getenv("RAFSD_EXPORT"); dir != "" {
		measure(t, dir)
		return
	}
	s := treetest.Shape{Seed: 1, Entries: 20_000, Bytes: 100_000_000}
	if raced {
		peakLimit, s.Entries, s.Bytes = 10*peakLimit, s.Entries/10, s.Bytes/10
	}
	if layer := os.Getenv("RAFSD_LAYER"); layer != "" {
		if _, err := fmt.Sscanf(layer, "%d,%d", &s.Entries, &s.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	for version, kinds := range map[int][]string{5: {"disk"}, 6: {"tar", "gzip", "disk"}} {
		r := s.Read()
		c := build(t, version, r)
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		for _, kind := range kinds {
			// A process of its own: memory that a test before it took does not count.
			cmd := exec.Command(os.Args[0], "-test.run=^TestPeakMemory$", "-test.v")
			cmd.Env = append(os.Environ(), "RAFSD_EXPORT="+filepath.Dir(c.Bootstrap), "RAFSD_KIND="+kind)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v\n%s", kind, err, out)
			}
			var peak, boot int64
			var took string
			_, line, _ := strings.Cut(string(out), "measured ")
			if _, err := fmt.Sscanf(line, "%d %d %s", &peak, &boot, &took); err != nil {
				t.Fatalf("%v in %q", err, out)
			}
			if version == 5 {
				boot *= 2
			}
			t.Logf("v%d %s: peak %d MiB with a bootstrap of %d MiB, %s", version, kind, peak>>20, boot>>20, took)
			if peak > peakLimit+boot {
				t.Errorf("v%d %s: peak of %d MiB, want at most %d and the bootstrap's %d", version, kind, peak>>20, peakLimit>>20, boot>>20)
			}
		}
	}
}

func measure(t *testing.T, dir string) {
	if !raced { // as the program has it (cmd/rafsd/limits.go)
		debug.SetGCPercent(50)
		debug.SetMemoryLimit(40 << 20)
	}
	start := time.Now()
	im, d := open(t, rafstest.Case{Bootstrap: filepath.Join(dir, "image.boot"), Blobs: rafstest.Blobs{dir}})
	var err error
	switch os.Getenv("RAFSD_KIND") {
	case "tar":
		_, err = export.Unpack(t.Context(), im, d, bufio.NewWriter(io.Discard), export.UnpackOptions{})
	case "gzip":
		_, err = export.Layer(t.Context(), im, d, io.Discard, export.LayerOptions{})
	default:
		_, err = export.Block(t.Context(), im, d, filepath.Join(t.TempDir(), "disk"), export.BlockOptions{Verity: true})
	}
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	var kib int64
	_, line, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(line, &kib); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("measured %d %d %s\n", kib<<10, im.Super().Size, time.Since(start).Round(time.Millisecond))
}
