package e2e

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/rafsd/rafsd/e2e/registry"
	"github.com/rafsd/rafsd/e2e/rootfs"
	"github.com/rafsd/rafsd/e2e/vm"
	"github.com/rafsd/rafsd/guest/probe"
	"github.com/rafsd/rafsd/guest/report"
	"github.com/rafsd/rafsd/internal/testenv"
)

// debian is a root file system with Python, Perl, git and what they come with, in two layers.
func debian(ctx context.Context, t *testing.T) v1.Image {
	t.Helper()
	image, err := rootfs.Image(ctx, rootfs.Options{Packages: []string{"python3"}, Layers: [][]string{{"perl", "git", "python3-requests", "python3-setuptools"}}})
	must(t, err)
	return image
}

// formats are the ways in which a real image is converted, and which of them a guest
// boots from.
var formats = []struct {
	name string
	args []string
	boot bool
}{
	{"v6-zstd", nil, true},
	{"v6-zstd-sha256", []string{"--digester", "sha256"}, false},
	{"v6-lz4", []string{"--compressor", "lz4_block"}, false},
	{"v6-none", []string{"--compressor", "none"}, false},
	{"v6-chunk-64k", []string{"--chunk-size", "64KiB"}, false},
	{"v6-batch", []string{"--batch-size", "512KiB"}, true},
	{"v6-zran", []string{"--oci-ref"}, true},
	{"v5-zstd", []string{"--fs-version", "5"}, true},
	{"v5-lz4", []string{"--fs-version", "5", "--compressor", "lz4_block"}, false},
	{"v5-none-aligned", []string{"--fs-version", "5", "--compressor", "none", "--fs-align-chunk"}, false},
}

// A real image in every format: nothing in it differs from its source, entry by entry
// and byte by byte, guests boot from it and see what GNU tar makes of the layers, and
// what is made an OCI image again is the same tree.
func TestFormats(t *testing.T) {
	testenv.NeedsVM(t)
	testenv.NeedsRoot(t)
	testenv.NeedsTool(t, "mmdebstrap", "tar")
	ctx := bounded(t)
	image := debian(ctx, t)
	want := unpack(t, image)
	if least := 12_000; len(want) < least {
		t.Errorf("%d entries, want at least %d", len(want), least)
	}
	r := startRegistry(t)
	source := r.Host + "/library/debian:oci"
	ref, err := name.ParseReference(source)
	must(t, err)
	must(t, remote.Write(ref, image, remote.WithContext(ctx)))
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			target := r.Host + "/library/debian:" + f.name
			rafsd(t, append([]string{"convert", source, target}, f.args...)...)
			rafsd(t, "verify", "--source", source, target)
		})
	}
	t.Run("boot", func(t *testing.T) {
		for _, f := range formats {
			if f.boot {
				t.Run(f.name, func(t *testing.T) {
					t.Parallel()
					bootFormat(t, r.Host+"/library/debian:"+f.name, want)
				})
			}
		}
	})
	t.Run("reverse", func(t *testing.T) {
		back := r.Host + "/library/debian:back"
		rafsd(t, "convert", "--reverse", r.Host+"/library/debian:v6-zstd", back)
		ref, err := name.ParseReference(back)
		must(t, err)
		again, err := remote.Image(ref, remote.WithContext(ctx))
		must(t, err)
		for _, d := range probe.Diff(withoutRoot(unpack(t, again)), withoutRoot(want)) {
			t.Error(d)
		}
	})
}

// rafsd runs a command, which must succeed.
func rafsd(t *testing.T, args ...string) {
	t.Helper()
	bin, err := binary()
	must(t, err)
	if text, err := exec.CommandContext(bounded(t), bin, args...).CombinedOutput(); err != nil {
		t.Fatalf("rafsd %s: %v\n%s", strings.Join(args, " "), err, text)
	}
}

// bootFormat boots a guest that runs programs of the image and compares its tree.
func bootFormat(t *testing.T, reference string, want []probe.Entry) {
	t.Helper()
	whole, err := registry.Stat(bounded(t), reference)
	must(t, err)
	if whole.ChunkBytes == 0 {
		t.Error("an image without data")
	}
	s := serve(t, "--cache-dir", t.TempDir(), reference)
	v := s.machine(t, vm.Options{Memory: 1024})
	python(t, v)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"perl", "-MDigest::SHA", "-e", "print Digest::SHA::sha256_hex('x')"}, "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"},
		{[]string{"sh", "-c", "cd /tmp && git init -q r && cd r && echo a >f && git add f && git -c user.name=n -c user.email=e commit -qm m && git log --format=%s"}, "m\n"},
	} {
		got, err := v.Run(bounded(t), report.Command{Args: c.args, Env: []string{"PATH=/usr/bin:/bin", "HOME=/tmp"}, Dir: "/tmp"})
		must(t, err)
		if got.Code != 0 || string(got.Stdout) != c.want {
			t.Errorf("%s: status %d, %q, stderr %q, want %q", c.args[0], got.Code, got.Stdout, got.Stderr, c.want)
		}
	}
	sameTree(t, v, want)
	must(t, v.PowerOff(bounded(t)))
}
