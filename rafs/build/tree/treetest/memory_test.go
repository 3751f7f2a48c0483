package treetest_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
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
	m, err := makeImage(t.TempDir(), 0, io.Discard, io.Discard, s)
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

// makeImage makes an image of layers, one after the other.
func makeImage(dir string, memory int, blobs, bootstrap io.Writer, shapes ...treetest.Shape) (m measured, err error) {
	start := time.Now()
	lap := func(took *string, high *int64) {
		*took, start = time.Since(start).Round(time.Millisecond).String(), time.Now()
		if high != nil {
			*high = highWater()
		}
	}
	format := write.Format{ChunkSize: blob.DefaultChunkSize, Compressor: blob.CompressorZstd}
	ctx := context.Background()
	pool := chunk.NewPool(2, 1, blob.DefaultChunkSize)
	var layers []*tree.Layer
	var infos []*write.BlobInfo
	defer func() {
		for _, l := range layers { // closed already, if there was a merge
			err = errors.Join(err, l.Close())
		}
		for _, info := range infos {
			err = errors.Join(err, info.Table.(*chunk.Table).Close())
		}
	}()
	for i, s := range shapes {
		l, info, err := makeLayer(ctx, pool, blobs, s, format,
			chunk.Options{Blob: uint32(i), Compressor: format.Compressor, TempDir: dir}, tree.ReadOptions{TempDir: dir, Memory: memory})
		if err != nil {
			return m, err
		}
		layers, infos = append(layers, l), append(infos, info)
		m.Blob += info.Object.Size
	}
	lap(&m.Read, &m.AfterRead)
	tr, err := tree.Merge(ctx, dir, layers...)
	if err != nil {
		return m, err
	}
	defer tr.Close()
	lap(&m.Merge, &m.AfterMerge)
	plan, err := write.New(tr, infos, write.Options{Format: format, TempDir: dir})
	if err != nil {
		return m, err
	}
	defer plan.Close()
	lap(&m.Plan, &m.AfterPlan)
	m.Bootstrap, m.Inodes = plan.Size(), plan.Inodes()
	err = plan.Write(bootstrap)
	lap(&m.Write, nil)
	return m, err
}

func makeLayer(ctx context.Context, pool *chunk.Pool, blobs io.Writer, s treetest.Shape, format write.Format, o chunk.Options, read tree.ReadOptions) (*tree.Layer, *write.BlobInfo, error) {
	out := bufio.NewWriterSize(blobs, 128<<10)
	w, err := write.NewBlob(out, write.BlobOptions{Format: format, TOC: true})
	if err != nil {
		return nil, nil, err
	}
	cutter, err := chunk.NewCutter(ctx, pool, w, o)
	if err != nil {
		return nil, nil, err
	}
	r := s.Read()
	defer r.Close()
	layer, err := tree.ReadTar(ctx, bufio.NewReaderSize(r, 128<<10), cutter, read)
	table, _, closeErr := cutter.Close()
	if err = errors.Join(err, closeErr); err == nil {
		var info *write.BlobInfo
		if info, err = w.Finish(write.Contents{Table: table}); err == nil {
			return layer, info, out.Flush()
		}
	}
	if layer != nil {
		err = errors.Join(err, layer.Close())
	}
	if table != nil {
		err = errors.Join(err, table.Close())
	}
	return nil, nil, err
}

// What is spilled, and how often, never shows in an image.
func TestSameImageWithAnyMemory(t *testing.T) {
	shapes := []treetest.Shape{{Seed: 1, Entries: 3000, Bytes: 4 << 20}, {Seed: 2, Entries: 500, Bytes: 1 << 20}, {Seed: 1, Entries: 2000, Bytes: 3 << 20}}
	var want string
	for _, memory := range []int{0, 64 << 20, 100 << 10, 1000} {
		blobs, bootstrap := sha256.New(), sha256.New()
		if _, err := makeImage(t.TempDir(), memory, blobs, bootstrap, shapes...); err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprintf("%x %x", blobs.Sum(nil), bootstrap.Sum(nil))
		if want == "" {
			want = got
		}
		if got != want {
			t.Errorf("memory %d: image %s, with the default %s", memory, got, want)
		}
	}
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
