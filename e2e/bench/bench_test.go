package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The test program stands for this one where it starts itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == launchVerb {
		if err := launch(os.Args[2:]); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestSumMappings(t *testing.T) {
	const smaps = `7f0000000000-7f0000200000 r--s 00000000 00:01 7    /memfd:bootstrap (deleted)
Size:               2048 kB
Rss:                2000 kB
Pss:                1000 kB
Anonymous:             0 kB
VmFlags: rd sh mr me ms sd
7f0001000000-7f0005000000 rw-s 00000000 00:01 8    /memfd:vhostusertest-guest (deleted)
Rss:               60000 kB
Pss:               30000 kB
Anonymous:             0 kB
c000000000-c000400000 rw-p 00000000 00:00 0
Rss:                 500 kB
Pss:                 500 kB
Anonymous:           400 kB
`
	var m memoryUse
	sumMappings(&m, []byte(smaps))
	if want := (memoryUse{RSS: 2500 << 10, PSS: 1500 << 10, Anonymous: 400 << 10}); m != want {
		t.Errorf("sum = %+v, want %+v: everything but guest memory", m, want)
	}
}

func TestReadMemoryOfThisProcess(t *testing.T) {
	m, err := readMemory(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if m.RSS == 0 || m.PSS == 0 || m.PSS > m.RSS || m.PeakRSS < m.RSS/2 {
		t.Errorf("memory = %+v, want 0 < PSS <= RSS and a peak", m)
	}
}

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 2, 9}, 3}} {
		if got := median(tc.in); got != tc.want {
			t.Errorf("median(%v) = %v, want %v", tc.in, got, tc.want)
		}
	}
}

// Ratios are taken within a round: a machine that is twice as fast in the second
// changes none.
func TestRatios(t *testing.T) {
	one := func(name string, peer bool) *load {
		return &load{daemon: &daemon{server: server{name: name, peer: peer}}}
	}
	loads := []*load{one("rafsd", false), one("nydusd", true), one("virtiofsd", true)}
	r := &report{}
	r.addRow(row{name: "x", unit: "op/s"}, loads, [][]sample{
		{{value: 100}, {value: 200}, {value: 110}},
		{{value: 50}, {value: 100}, {value: 55}},
		{{value: 80}, {value: 160}, {value: 88}},
	})
	ours, nydusd := r.Rows[0].Cells[0], r.Rows[0].Cells[1]
	if ours.Value != 110 || ours.ToNydusd != 2 || ours.ToBest != 1.25 {
		t.Errorf("rafsd = %+v, want 110, twice nydusd, 1.25 of the best peer", ours)
	}
	if nydusd.ToNydusd != 0 || nydusd.ToBest != 0.625 {
		t.Errorf("nydusd = %+v, want 0.625 of the best other peer", nydusd)
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-layout", "folio", "-mode", "rows", "-rows", "QD16$", "-nydusd", "none"})
	if err != nil {
		t.Fatal(err)
	}
	if !o.mode("rows") || o.mode("density") || !o.rows.MatchString("LOOKUP QD16") || o.rows.MatchString("LOOKUP QD1") {
		t.Errorf("options = %+v", o)
	}
	if o, err := parse(nil); err != nil || !o.mode("build") || o.mode("huge") {
		t.Errorf("without flags: %+v, %v; want images made, but no huge one", o, err)
	}
	for _, bad := range [][]string{
		{"-layout", "x"}, {"-rows", "("}, {"-nothing"}, {"-mode", "rows,biuld"}, {"-mode", ""}, {"-rounds", "0"}, {"-huge-entries", "0"},
	} {
		if _, err := parse(bad); err == nil {
			t.Errorf("parse(%q) succeeded", bad)
		}
	}
}

func TestReferenceSeesEverything(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o751); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a/b/f"), []byte("abc"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("b/f", filepath.Join(dir, "a/l")); err != nil {
		t.Fatal(err)
	}
	got, err := readReference(dir)
	if err != nil || len(got) != 4 {
		t.Fatalf("reference = %v, %v, want 4 entries", got, err)
	}
	if f := got["a/b/f"]; f.mode != 0o100640 || f.size != 3 || f.sum[0] != 0xba {
		t.Errorf("file = %+v, want mode 100640, 3 bytes, the SHA-256 of abc", f)
	}
	if l := got["a/l"]; l.link != "b/f" {
		t.Errorf("link = %q, want b/f", l.link)
	}
}

// A half-made folder never counts as made.
func TestOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x", "made")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := once(dir, func(string) error { return ctx.Err() }); err == nil {
		t.Error("a failure was taken for success")
	}
	for range 2 {
		if err := once(dir, func(tmp string) error { return os.WriteFile(filepath.Join(tmp, "f"), nil, 0o600) }); err != nil {
			t.Fatal(err)
		}
	}
	left, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || len(left) != 1 || strings.HasPrefix(left[0].Name(), ".") {
		t.Errorf("left behind: %v, %v, want only the folder", left, err)
	}
}

// The generated layer is the same every time, has what it says, and is not of a kind
// that dedup or compression makes vanish.
func TestHugeLayer(t *testing.T) {
	var first, second bytes.Buffer
	for _, w := range []io.Writer{&first, &second} {
		if err := writeHuge(w, 1000, 16<<20); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("two runs differ")
	}
	entries, size := 0, int64(0)
	seen := map[[32]byte]bool{}
	for tr := tar.NewReader(&first); ; entries++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(data)
		if h.Size > 64 && seen[sum] {
			t.Errorf("%s has the content of another file", h.Name)
		}
		seen[sum] = true
		size += h.Size
	}
	if entries != 1000 || size < 15<<20 || size > 17<<20 {
		t.Errorf("%d entries and %d bytes, want 1000 and about %d", entries, size, 16<<20)
	}
}
