package zstdenc

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/rafsd/rafsd/internal/testenv"
)

// inputs are of every kind that blocks and tables make a difference for.
func inputs() map[string][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	words := func(n, vocabulary int) []byte {
		var b []byte
		for len(b) < n {
			b = fmt.Appendf(b, "%x ", uint64(rng.IntN(vocabulary))*0x9e3779b97f4a7c15)
		}
		return b[:n]
	}
	all := map[string][]byte{
		"empty":        nil,
		"zeros":        make([]byte, 300_000),
		"noise":        noise(200_000),
		"skewed":       bytes.Map(func(r rune) rune { return 'a' + r%5 }, noise(70_000)),
		"far":          append(append(noise(1000), make([]byte, 3<<20)...), noise(1000)...),
		"noise, text":  append(noise(128<<10), words(300_000, 500)...),
		"text, noise":  append(words(300_000, 500), noise(200_000)...),
		"mixed blocks": bytes.Join([][]byte{words(128<<10, 50), make([]byte, 128<<10), noise(128 << 10), words(128<<10, 50)}, nil),
		"repeats":      bytes.Repeat(noise(1000), 700),
		"one literal":  append(bytes.Repeat([]byte("abcdefgh"), 1000), 'x'),
		"large":        words(MaxInput, 100_000),
	}
	numbers := make([]byte, 0, 400_000)
	for i := range uint32(100_000) {
		numbers = binary.LittleEndian.AppendUint32(numbers, i*i)
	}
	all["numbers"] = numbers
	for _, n := range []int{1, 7, 8, 9, 10, 31, 32, 33, 255, 256, 1023, 1024, 65791, 65792, 131071, 131072, 131073, 262144} {
		all[fmt.Sprintf("text of %d", n)] = words(n, 1000)
	}
	return all
}

func decode(t testing.TB, frame []byte, size int) []byte {
	t.Helper()
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxInput))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var h zstd.Header
	if err := h.Decode(frame); err != nil || !h.HasFCS || h.FrameContentSize != uint64(size) || !h.SingleSegment || h.HasCheckSum {
		t.Errorf("header = %+v, %v, want a single segment of %d bytes and no checksum", h, err, size)
	}
	out, err := d.DecodeAll(frame, nil)
	if err != nil {
		t.Errorf("decode %d bytes: %v", size, err)
	}
	return out
}

func TestRoundTrip(t *testing.T) {
	var e Encoder
	for name, in := range inputs() {
		frame := e.Encode([]byte("before"), in)
		if !bytes.HasPrefix(frame, []byte("before")) {
			t.Errorf("%s: what was in dst is gone", name)
		}
		if got := decode(t, frame[6:], len(in)); !bytes.Equal(got, in) {
			t.Errorf("%s: %d bytes come back as %d others", name, len(in), len(got))
		}
		if most := len(in) + len(in)>>14 + 16; len(frame) > most {
			t.Errorf("%s: %d bytes become %d, want at most %d", name, len(in), len(frame), most)
		}
	}
}

// A frame is a function of its input alone, on every machine: were this to change,
// images built anew would have other names.
func TestSameBytes(t *testing.T) {
	var used Encoder
	all := inputs()
	sum := sha256.New()
	for range 2 {
		for name, in := range all {
			if got, want := used.Encode(nil, in), new(Encoder).Encode(nil, in); !bytes.Equal(got, want) {
				t.Errorf("%s: an encoder that was used before gives other bytes", name)
			}
		}
	}
	for _, name := range []string{"mixed blocks", "text of 262144", "numbers", "text, noise"} {
		sum.Write(used.Encode(nil, inputs()[name]))
	}
	const want = "254523dd7a6164d4225801b412675ea7241a141d66572749ec00a7cb7037598e"
	if got := fmt.Sprintf("%x", sum.Sum(nil)); got != want {
		t.Errorf("sha256 of frames = %s, want %s", got, want)
	}
}

// The reference implementation's own program decodes the frames, with its check for
// corruption on.
func TestReferenceAgrees(t *testing.T) {
	program := testenv.NeedsTool(t, "zstd")[0]
	dir := t.TempDir()
	var e Encoder
	for name, in := range inputs() {
		file := filepath.Join(dir, "frame.zst")
		if err := os.WriteFile(file, e.Encode(nil, in), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(program, "--decompress", "--stdout", file).Output()
		if err != nil || !bytes.Equal(out, in) {
			t.Errorf("%s: zstd makes %d bytes of the frame of %d: %v", name, len(out), len(in), err)
		}
	}
}

// Frames are no larger than those of the library's encoder at its default level.
func TestSize(t *testing.T) {
	var e Encoder
	k, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := 0, 0
	for _, in := range sources(t) {
		ours += len(e.Encode(nil, in))
		theirs += len(k.EncodeAll(in, nil))
	}
	if ours > theirs {
		t.Errorf("%d bytes, the library has %d", ours, theirs)
	}
	t.Logf("%d bytes, the library has %d", ours, theirs)
}

// sources are the Go files of this module and the programs of this machine's shell:
// text and code as an image has them.
func sources(tb testing.TB) (all [][]byte) {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join(testenv.ModuleRoot(), "*", "*", "*.go"))
	if err != nil || len(files) == 0 {
		tb.Fatalf("no sources: %v", err)
	}
	for _, file := range append(files, "/bin/sh", "/bin/bash") {
		b, err := os.ReadFile(file)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			tb.Fatal(err)
		}
		for ; len(b) > 1<<20; b = b[1<<20:] {
			all = append(all, b[:1<<20])
		}
		all = append(all, b)
	}
	return all
}

func TestEncodeAllocatesNothing(t *testing.T) {
	var e Encoder
	in := inputs()["mixed blocks"]
	dst := e.Encode(nil, in)
	if n := testing.AllocsPerRun(10, func() { dst = e.Encode(dst[:0], in) }); n > 0 {
		t.Errorf("%v allocations a frame, want none", n)
	}
}

func TestInputTooLong(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	new(Encoder).Encode(nil, make([]byte, MaxInput+1))
}

// nearly is in and more of it, not quite the same, so that matches are cut short.
func nearly(in []byte, repeat uint8) []byte {
	whole := in
	for range repeat {
		if len(in) == 0 || len(whole)+len(in) > 1<<20 {
			break
		}
		whole = append(whole[:len(whole):len(whole)], in...)
		whole[len(whole)/2] ^= 1
	}
	return whole
}

// FuzzEncode: what the library decodes is what went in, whatever was encoded before.
func FuzzEncode(f *testing.F) {
	for _, in := range inputs() {
		f.Add(in[:min(len(in), 200_000)], uint8(0))
	}
	f.Add([]byte("0123456789abcdef"), uint8(200))
	var e Encoder
	f.Fuzz(func(t *testing.T, in []byte, repeat uint8) {
		whole := nearly(in, repeat)
		if got := decode(t, e.Encode(nil, whole), len(whole)); !bytes.Equal(got, whole) {
			t.Errorf("%d bytes come back as %d others", len(whole), len(got))
		}
	})
}

// BenchmarkEncode takes turns with the library, so that a busy machine is as busy for
// both. Files are chunks of a few kilobytes, mostly, and programs some of a megabyte.
func BenchmarkEncode(b *testing.B) {
	all := sources(b)
	total := 0
	for _, in := range all {
		total += len(in)
	}
	k, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(1<<20))
	if err != nil {
		b.Fatal(err)
	}
	var e Encoder
	var dst []byte
	var ours, theirs time.Duration
	b.ReportAllocs()
	for b.Loop() {
		for _, in := range all {
			start := time.Now()
			dst = e.Encode(dst[:0], in)
			middle := time.Now()
			dst = k.EncodeAll(in, dst[:0])
			ours += middle.Sub(start)
			theirs += time.Since(middle)
		}
	}
	b.ReportMetric(float64(total)*float64(b.N)/1e6/ours.Seconds(), "MB/s")
	b.ReportMetric(theirs.Seconds()/ours.Seconds(), "library/ours")
}

// Noise that is too short for huff0 to know it must not take longer than text.
func TestHopeless(t *testing.T) {
	all := inputs()
	for _, n := range []int{600, 1000, 4000, certain - 1} {
		if !hopeless(all["noise"][:n]) {
			t.Errorf("%d bytes of noise: a code is tried", n)
		}
		for _, name := range []string{"large", "skewed", "numbers"} {
			if hopeless(all[name][:n]) {
				t.Errorf("%d bytes of %s: no code is tried", n, name)
			}
		}
	}
}
