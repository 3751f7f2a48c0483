package treetest_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/tree/treetest"
	"github.com/rafsd/rafsd/rafs/build/write"
)

// peakLimit is what a process may take that makes an image, in bytes.
const peakLimit = 64 << 20

// A process that makes an image stays below the limit however many entries and
// bytes there are. RAFSD_LAYER=ENTRIES,BYTES measures another layer.
func TestPeakMemory(t *testing.T) {
	if shape := os.Getenv("RAFSD_MEASURE"); shape != "" {
		measure(t, shape)
		return
	}
	shapes := []string{"2000,100000000", "100000,100000000"}
	if s := os.Getenv("RAFSD_LAYER"); s != "" {
		shapes = []string{s}
	}
	for _, shape := range shapes {
		// A process of its own: memory that a test before it took does not count.
		cmd := exec.Command(os.Args[0], "-test.run=^TestPeakMemory$", "-test.v")
		cmd.Env = append(os.Environ(), "RAFSD_MEASURE="+shape)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", shape, err, out)
		}
		_, line, _ := strings.Cut(string(out), "measured ")
		line, _, _ = strings.Cut(line, "\n")
		var m measured
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%s: %v in %q", shape, err, out)
		}
		t.Logf("%s: %+v", shape, m)
		if m.Peak > peakLimit {
			t.Errorf("%s: peak of %d MiB, want at most %d", shape, m.Peak>>20, peakLimit>>20)
		}
	}
}

type measured struct {
	Peak, AfterRead, AfterMerge, AfterPlan int64 // bytes
	Blob, Bootstrap                        int64
	Inodes                                 int
	Read, Merge, Plan, Write               string
}

func measure(t *testing.T, shape string) {
	entries, size, _ := strings.Cut(shape, ",")
	s := treetest.Shape{Seed: 1}
	var err error
	if s.Entries, err = strconv.Atoi(entries); err != nil {
		t.Fatal(err)
	}
	if s.Bytes, err = strconv.ParseInt(size, 10, 64); err != nil {
		t.Fatal(err)
	}
	m, err := makeImage(t.TempDir(), s)
	if err != nil {
		t.Fatal(err)
	}
	m.Peak = peak(t)
	line, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("measured %s\n", line)
}

func makeImage(dir string, s treetest.Shape) (m measured, err error) {
	start := time.Now()
	lap := func(took *string, high *int64) {
		*took, start = time.Since(start).Round(time.Millisecond).String(), time.Now()
		if high != nil {
			*high = highWater()
		}
	}
	format := write.Format{ChunkSize: blob.DefaultChunkSize, Compressor: blob.CompressorZstd}
	out := bufio.NewWriterSize(io.Discard, 128<<10)
	w, err := write.NewBlob(out, write.BlobOptions{Format: format, TOC: true})
	if err != nil {
		return m, err
	}
	ctx := context.Background()
	cutter, err := chunk.NewCutter(ctx, chunk.NewPool(2, 1, blob.DefaultChunkSize), w, chunk.Options{Compressor: format.Compressor, TempDir: dir})
	if err != nil {
		return m, err
	}
	r := s.Read()
	defer r.Close()
	layer, err := tree.ReadTar(ctx, bufio.NewReaderSize(r, 128<<10), cutter, tree.ReadOptions{TempDir: dir})
	table, _, closeErr := cutter.Close()
	if err != nil || closeErr != nil {
		return m, fmt.Errorf("%w, %w", err, closeErr)
	}
	defer table.Close()
	info, err := w.Finish(write.Contents{Table: table})
	if err != nil {
		return m, err
	}
	m.Blob = info.Object.Size
	lap(&m.Read, &m.AfterRead)
	tr, err := tree.Merge(ctx, dir, layer)
	if err != nil {
		return m, err
	}
	defer tr.Close()
	lap(&m.Merge, &m.AfterMerge)
	plan, err := write.New(tr, []*write.BlobInfo{info}, write.Options{Format: format, TempDir: dir})
	if err != nil {
		return m, err
	}
	defer plan.Close()
	lap(&m.Plan, &m.AfterPlan)
	m.Bootstrap, m.Inodes = plan.Size(), plan.Inodes()
	err = plan.Write(io.Discard)
	lap(&m.Write, nil)
	return m, err
}

// highWater is the most memory that the process has taken, in bytes.
func highWater() int64 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return -1
	}
	_, line, _ := strings.Cut(string(data), "VmHWM:")
	kib, err := strconv.ParseInt(strings.Fields(line)[0], 10, 64)
	if err != nil {
		return -1
	}
	return kib << 10
}

func peak(t *testing.T) int64 {
	t.Helper()
	n := highWater()
	if n <= 0 {
		t.Fatal("no VmHWM in /proc/self/status")
	}
	return n
}
