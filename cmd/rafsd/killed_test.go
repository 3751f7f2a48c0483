package main

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// noisyLayout is an OCI layout of an image of layers that do not compress.
func noisyLayout(t *testing.T, layers, size int) string {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	for i := range layers {
		r := rand.NewChaCha8([32]byte{byte(i)})
		data := make([]byte, size)
		_, _ = r.Read(data)
		for at := range data { // no newline: makeTar reads lines
			data[at] = 'a' + data[at]%26
		}
		raw, err := makeTar("file layer" + string(rune('0'+i)) + " " + string(data))
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, static.NewLayer(raw, types.OCIUncompressedLayer)); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(t.TempDir(), "oci")
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"})); err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir
}

// self is this binary by the command's name, which testscript.Main then runs.
func self(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "rafsd")
	if err := os.Symlink(exe, link); err != nil {
		t.Fatal(err)
	}
	return link
}

// converting runs a conversion; it is killed when ctx ends.
func converting(ctx context.Context, bin, work, src, dst string) (*convertFacts, error) {
	cmd := exec.CommandContext(ctx, bin, "convert", "--json", "--workers", "1", "--work-dir", work, src, dst)
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var f convertFacts
	return &f, json.Unmarshal(out, &f)
}

// resumedLayers counts the layers that were there.
func resumedLayers(f *convertFacts) (n int) {
	for _, l := range f.Layers {
		if l.Resumed {
			n++
		}
	}
	return n
}

// A conversion that is killed, whenever that is, leaves no image under its name;
// started again it goes on, and makes what it would have made.
func TestConvertKilled(t *testing.T) {
	bin, src := self(t), noisyLayout(t, 4, 3<<20)
	start := time.Now()
	want, err := converting(t.Context(), bin, t.TempDir(), src, "oci:"+t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	r, work := rand.New(rand.NewPCG(1, 2)), t.TempDir()
	for range 15 {
		out := t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(r.Int64N(int64(took))))
		got, err := converting(ctx, bin, work, src, "oci:"+out)
		cancel()
		index, readErr := os.ReadFile(filepath.Join(out, "index.json"))
		switch {
		case err == nil && got.Digest != want.Digest:
			t.Fatalf("a run that came through made %s, want %s", got.Digest, want.Digest)
		case readErr == nil && !strings.Contains(string(index), want.Digest): // killed when all was done
			t.Fatalf("killed: index.json is %s, want none or %s", index, want.Digest)
		}
	}
	got, err := converting(t.Context(), bin, work, src, "oci:"+t.TempDir())
	if err != nil || got.Digest != want.Digest {
		t.Fatalf("in the end: %v, %v, want %s", got, err, want.Digest)
	}
	if left, _ := filepath.Glob(filepath.Join(work, "*", "*")); len(left) != 0 {
		t.Errorf("%v remains", left)
	}
}

// What was done when the kill came is not done again.
func TestConvertKilledResumes(t *testing.T) {
	bin, src := self(t), noisyLayout(t, 6, 6<<20)
	for range 5 { // until a kill comes before the end
		work, out := t.TempDir(), t.TempDir()
		if killedWithLayer(t, bin, work, src, out) {
			got, err := converting(t.Context(), bin, work, src, "oci:"+out)
			if err != nil {
				t.Fatal(err)
			}
			if resumedLayers(got) == 0 {
				t.Errorf("no layer was resumed")
			}
			return
		}
	}
	t.Error("every conversion was faster than the kill")
}

// killedWithLayer kills a conversion when it has kept a layer, false if it ended
// before that.
func killedWithLayer(t *testing.T, bin, work, src, out string) bool {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := converting(ctx, bin, work, src, "oci:"+out)
		ended <- err
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for kept := []string(nil); len(kept) == 0; {
		select {
		case <-tick.C:
			kept, _ = filepath.Glob(filepath.Join(work, "layers", "*.layer"))
		case err := <-ended:
			t.Logf("ended before it was killed: %v", err)
			return false
		}
	}
	cancel()
	return <-ended != nil
}
