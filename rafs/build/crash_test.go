package build

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/blob"
)

// killedDir is the environment variable that makes of this test the process that
// gets killed.
const killedDir = "RAFSD_BUILD_KILLED_IN"

// A build that is killed in the midst of its blob leaves nothing, under no name.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(killedDir); dir != "" {
		o := Defaults()
		o.Source, o.Type, o.BlobDir, o.TempDir = filepath.Join(dir, "fifo"), TarRafs, filepath.Join(dir, "out"), filepath.Join(dir, "temp")
		_, err := Create(context.Background(), o)
		t.Fatalf("not killed: %v", err)
	}
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "out"), 0o755), os.Mkdir(filepath.Join(dir, "temp"), 0o755))
	put(t, dir, "out/old", []byte("stays"))
	src := t.TempDir()
	put(t, src, "big", noise(1, 8<<20))
	tarball, err := exec.Command("tar", "-C", src, "-cf", "-", ".").Output()
	must(t, err, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe, "-test.run", "^TestKilled$")
	cmd.Env = append(os.Environ(), killedDir+"="+dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	fifo, err := os.OpenFile(filepath.Join(dir, "fifo"), os.O_WRONLY, 0)
	must(t, err)
	defer fifo.Close()
	// All but the end: what is left waits in the pipe, the rest is in the blob.
	_, err = io.Copy(fifo, bytes.NewReader(tarball[:len(tarball)-4096]))
	must(t, err, cmd.Process.Kill())
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != -1 {
		t.Fatalf("ended by itself: %v: %s", err, out.String())
	}
	if got := files(t, filepath.Join(dir, "out")); !slices.Equal(got, []string{"old"}) {
		t.Errorf("left %q", got)
	}
	if got := files(t, filepath.Join(dir, "temp")); len(got) != 0 {
		t.Errorf("left %q in the work folder", got)
	}
}

func TestDiskFull(t *testing.T) {
	src := source(t)
	for name, change := range map[string]func(*Options){
		"blob":      func(o *Options) { o.Blob = "/dev/full" },
		"bootstrap": func(o *Options) { o.Bootstrap = "/dev/full" },
		"inline":    func(o *Options) { o.Blob, o.InlineMeta, o.Bootstrap = "/dev/full", true, "" },
	} {
		o := options(t, src)
		change(&o)
		_, err := Create(context.Background(), o)
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s: got %v, want ENOSPC", name, err)
		}
		if got := files(t, o.TempDir); len(got) != 0 {
			t.Errorf("%s: left %q in the work folder", name, got)
		}
	}
}

// A file system that has no files without names gets one that says what it is,
// and only until the build ends.
func TestNamedMeanwhile(t *testing.T) {
	dir := t.TempDir()
	for _, publish := range []bool{false, true} {
		temp := filepath.Join(dir, tempName())
		f, err := os.Create(temp)
		must(t, err)
		o := &output{File: f, dir: dir, path: filepath.Join(dir, "name"), temp: temp}
		want := []string{}
		if publish {
			must(t, o.publish())
			want = []string{"name"}
		}
		o.discard()
		if got := files(t, dir); !slices.Equal(got, want) {
			t.Errorf("published %t: %q is there, want %q", publish, got, want)
		}
	}
}

// Nobody else can guess the key of a blob, and no two blobs have the same.
func TestKeysAreMadeUp(t *testing.T) {
	src := source(t)
	want := dirEntries(t, src)
	var keys []blob.Key
	for range 2 {
		o := options(t, src)
		o.Encrypt = true
		r := create(t, o)
		compare(t, r.Bootstrap, []string{o.BlobDir}, want)
		keys = append(keys, openTest(t, r.Bootstrap).Blobs()[0].Key)
	}
	if keys[0].XTS == keys[1].XTS || keys[0].IV == keys[1].IV {
		t.Error("two builds had the same key or the same IV")
	}
}
