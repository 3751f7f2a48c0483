package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// What this process has in memory is not the child's.
func TestMeasure(t *testing.T) {
	ballast := make([]byte, 256<<20)
	for i := 0; i < len(ballast); i += 4096 {
		ballast[i] = 1
	}
	u, err := measure(t.Context(), []string{"sh", "-c", "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done"})
	if err != nil {
		t.Fatal(err)
	}
	if u.RSS == 0 || u.RSS > uint64(len(ballast))/2 || u.Wall <= 0 || u.CPU <= 0 {
		t.Errorf("a shell took %+v, want less memory than the %d bytes of its ancestor", u, len(ballast))
	}
	ballast[0]++ // it lived until here
	_, err = measure(t.Context(), []string{"sh", "-c", "echo out of paper >&2; exit 3"})
	if err == nil || !strings.Contains(err.Error(), "out of paper") {
		t.Errorf("a program that failed: %v, want what it said", err)
	}
}

// maker is a program with the grammar of nydus-image: it writes a blob of so many bytes
// and counts what it is given.
func maker(t *testing.T, name, bytes string) builder {
	t.Helper()
	script := filepath.Join(t.TempDir(), "maker")
	must(t, os.WriteFile(script, []byte(`#!/bin/sh
for source; do :; done
while [ "$1" != --blob-dir ]; do [ "$1" = --bootstrap ] && boot=$2; shift; done
[ -d "$source" ] || wc -c < "$source" > "$2.read"
head -c `+bytes+` /dev/zero > "$2/blob"
: > "$boot"
`), 0o755))
	return builder{name, []string{script}}
}

// Sizes are those of all that was written, and nothing stays behind.
func TestBuildRow(t *testing.T) {
	out := filepath.Join(t.TempDir(), "built")
	builders := []builder{maker(t, ownBuilder, "1000"), maker(t, peerBuilder, "4000")}
	samples, err := buildRows[0].measure(t.Context(), builders, 3, t.TempDir(), out)
	if err != nil {
		t.Fatal(err)
	}
	if len(samples) != 2 || len(samples[0]) != 3 || samples[0][0].Bytes != 1000 || samples[1][2].Bytes != 4000 {
		t.Errorf("samples = %+v, want three each, of 1000 and 4000 bytes", samples)
	}
	if _, err := os.Stat(out); !os.IsNotExist(err) {
		t.Errorf("what was made is still there: %v", err)
	}
	broken := builder{"broken", []string{"false"}}
	if _, err := buildRows[0].measure(t.Context(), []builder{broken}, 1, t.TempDir(), out); err == nil {
		t.Error("a program that fails has made an image")
	}
}

// Ratios are taken within a round and of the best rounds; memory is the most that was seen.
func TestBuildRatios(t *testing.T) {
	one := func(wall, cpu float64, rss, bytes uint64) built { return built{usage{wall, cpu, rss}, bytes} }
	r := &report{Rounds: 3}
	r.addBuild(buildRow{name: "x", aim: 1.5}, 8e6, []builder{{name: ownBuilder}, {name: peerBuilder}}, [][]built{
		{one(1, 2, 30e6, 900), one(4, 2, 50e6, 900), one(2, 2, 40e6, 900)},
		{one(2, 1, 100e6, 1000), one(4, 1, 100e6, 1000), one(6, 2, 100e6, 1000)},
	})
	got := r.Builds[0]
	want := buildRatios{Speed: spread{Median: 2, Least: 1, OfBest: 2}, CPU: spread{Median: 2, Least: 1, OfBest: 2}, RSS: 0.5, Size: 0.9}
	if got.ToPeer == nil || *got.ToPeer != want {
		t.Errorf("ratios = %+v, want %+v", got.ToPeer, want)
	}
	if m := got.Makers[0]; m.RSS != 50e6 || m.Wall != (figure{2, 1}) {
		t.Errorf("ours = %+v, want 50 MB, 2 s and at best 1 s", m)
	}
	var b bytes.Buffer
	r.print(&b)
	for _, want := range []string{"2.00 (1.00)", "at least 1.5: met", "at most 1: met", "4.0 (8.0)"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in:\n%s", want, &b)
		}
	}
	if strings.Contains(b.String(), "entries, image made by") {
		t.Errorf("daemons that did not run are talked of:\n%s", &b)
	}
	raw, err := json.Marshal(r)
	if err != nil || !bytes.Contains(raw, []byte(`"of_best_rounds":2`)) {
		t.Errorf("JSON = %s, %v", raw, err)
	}
}

// A program that is not there is named below the tables.
func TestMissingPeer(t *testing.T) {
	r := &report{}
	r.leaveOut(peerBuilder, "nothing is compared")
	r.leaveOut(peerBuilder, "nothing is compared")
	var b bytes.Buffer
	r.print(&b)
	if strings.Count(b.String(), "nydus-image was not found: nothing is compared") != 1 {
		t.Errorf("printed %q", b.String())
	}
}

// All of the layer goes through the FIFO, and a program that does not read it ends
// the generator.
func TestHugeThroughFIFO(t *testing.T) {
	work := t.TempDir()
	l := hugeLayer{entries: 300, bytes: 3 << 20}
	row := buildRow{kind: "tar-rafs", cores: 1}
	got, err := l.make(t.Context(), maker(t, ownBuilder, "10"), row, work)
	if err != nil || got.Bytes != 10 {
		t.Fatalf("got %+v, %v", got, err)
	}
	var want bytes.Buffer
	must(t, writeHuge(&want, l.entries, l.bytes))
	read, err := os.ReadFile(filepath.Join(work, "built.read"))
	if n, _ := strconv.Atoi(strings.TrimSpace(string(read))); err != nil || n != want.Len() {
		t.Errorf("%s bytes were read (%v), want %d", read, err, want.Len())
	}
	if _, err := l.make(t.Context(), builder{"false", []string{"false"}}, row, work); err == nil {
		t.Error("a program that reads nothing has made an image")
	}
}

// Figures stand beside what they are to be.
func TestAims(t *testing.T) {
	r := &report{
		Servers: []*serverReport{{Name: "rafsd", ListenMS: 12, Memory: memoryUse{RSS: 31e6}}, {Name: "nydusd", Peer: true}},
		Density: []densityReport{{Server: "rafsd", Daemons: 40, PSS: 15e6}},
		Rows: []rowReport{
			{Name: "A", Cells: []cellReport{{ToNydusd: 1.2}}}, {Name: "B", Cells: []cellReport{{ToNydusd: 0.79}}},
		},
	}
	var b strings.Builder
	r.printAims(&b)
	var verdicts []string
	for line := range strings.Lines(b.String()) {
		f := strings.Fields(line)
		if len(f) > 0 && !strings.HasPrefix(line, "aims") {
			verdicts = append(verdicts, f[0]+" "+f[len(f)-1])
		}
	}
	if got, want := strings.Join(verdicts, ", "), "exec met, RSS missed, PSS met, lowest missed"; got != want {
		t.Errorf("verdicts = %s, want %s:\n%s", got, want, &b)
	}
}

// Images of earlier builds go, nothing else does.
func TestRemoveOthers(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"image-x", "image-x-rafsd-1", "image-x-rafsd-2"} {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	must(t, removeOthers(filepath.Join(dir, "image-x-rafsd-"), filepath.Join(dir, "image-x-rafsd-2")))
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 2 || filepath.Base(left[0]) != "image-x" || filepath.Base(left[1]) != "image-x-rafsd-2" {
		t.Errorf("left = %q, %v, want image-x and image-x-rafsd-2", left, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
