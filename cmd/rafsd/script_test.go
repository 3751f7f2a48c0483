package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob/backend/backendtest/objectserver"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"rafsd": main, "nydusify": main, "nydus-image": main, "rafsd-measured": mainMeasured})
}

// The command line is told as stories in testdata/script. The commands that they
// have beside testscript's own:
//
//	exits CODE PROGRAM ARGS...   run a program that must end with this code
//	ocilayout DIR TAG LIST...    make an OCI layout with an image; each list is a layer, $LAYER1 the first one's blob
//	tarfile FILE LIST            make a tar of a list
//	registry                     serve a registry with one OCI image, demo/oci:v1; $REGISTRY is its address
//	bucket FILE                  serve a fake S3 store; FILE gets the configuration of its bucket, FILE.wrong one with another key
//	waitlog FILE PATTERN         wait until a line of a file matches
//	scrape SOCKET PATH           GET over a unix socket, to stdout
//	flip FILE OFFSET             change a byte of a file
//	truncate FILE SIZE           cut a file
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("TESTDATA", filepath.Join(testenv.ModuleRoot(), "rafs", "rafstest", "testdata"))
			env.Setenv("CONFIGS", filepath.Join(testenv.ModuleRoot(), "configs"))
			env.Setenv("DOCKER_CONFIG", env.WorkDir)
			env.Setenv("AWS_EC2_METADATA_DISABLED", "true")
			env.Setenv("XDG_CACHE_HOME", filepath.Join(env.WorkDir, ".cache"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "ocilayout": ociLayoutCmd, "tarfile": tarFile, "registry": serveRegistry, "bucket": serveBucket,
			"flip": flip, "truncate": truncate, "waitlog": waitLog, "scrape": scrape,
		},
	})
}

func exits(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS...")
	}
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%s: %v", args[1], err)
		}
		code = exit.ExitCode()
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// makeTar makes a tar of lines "dir NAME", "file NAME TEXT", "hardlink NAME TARGET",
// "symlink NAME TARGET", "fifo NAME" and "big NAME SIZE", the last of zeros. Names
// are taken as they are, good or bad.
func makeTar(list string) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for line := range strings.Lines(list) {
		kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		name, arg, _ := strings.Cut(rest, " ")
		hdr, body := tar.Header{Name: name, Mode: 0o644}, []byte(nil)
		switch kind {
		case "":
			continue
		case "dir":
			hdr.Typeflag, hdr.Mode = tar.TypeDir, 0o755
		case "file":
			body = []byte(arg + "\n")
		case "big":
			size, err := strconv.Atoi(arg)
			if err != nil {
				return nil, err
			}
			body = make([]byte, size)
		case "hardlink":
			hdr.Typeflag, hdr.Linkname = tar.TypeLink, arg
		case "symlink":
			hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, arg
		case "fifo":
			hdr.Typeflag = tar.TypeFifo
		default:
			return nil, fmt.Errorf("tar list: %q", line)
		}
		hdr.Size = int64(len(body))
		if err := w.WriteHeader(&hdr); err != nil {
			return nil, err
		}
		if _, err := w.Write(body); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return out.Bytes(), err
}

func tarFile(ts *testscript.TestScript, _ bool, args []string) {
	b, err := makeTar(ts.ReadFile(args[1]))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
}

func ociLayoutCmd(ts *testscript.TestScript, _ bool, args []string) {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	for i, list := range args[2:] {
		b, err := makeTar(ts.ReadFile(list))
		ts.Check(err)
		layer := static.NewLayer(b, types.OCIUncompressedLayer)
		img, err = mutate.AppendLayers(img, layer)
		ts.Check(err)
		digest, err := layer.Digest()
		ts.Check(err)
		ts.Setenv(fmt.Sprintf("LAYER%d", i+1), filepath.Join(args[0], "blobs", digest.Algorithm, digest.Hex))
	}
	cfg, err := img.ConfigFile()
	ts.Check(err)
	cfg.OS, cfg.Architecture, cfg.Config.Env = "linux", "amd64", []string{"PATH=/bin"}
	img, err = mutate.ConfigFile(img, cfg)
	ts.Check(err)
	path, err := layout.Write(ts.MkAbs(args[0]), empty.Index)
	ts.Check(err)
	ts.Check(path.AppendImage(img, layout.WithAnnotations(map[string]string{refName: args[1]}),
		layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"})))
}

func serveRegistry(ts *testscript.TestScript, _ bool, _ []string) {
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	ts.Defer(s.Close)
	ts.Setenv("REGISTRY", s.Listener.Addr().String())
	ref, err := name.ParseReference(s.Listener.Addr().String() + "/demo/oci:v1")
	ts.Check(err)
	b, err := makeTar("file x y")
	ts.Check(err)
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer(b, types.OCIUncompressedLayer))
	ts.Check(err)
	ts.Check(remote.Write(ref, img))
}

func serveBucket(ts *testscript.TestScript, _ bool, args []string) {
	s := httptest.NewServer(&objectserver.Server{Kind: objectserver.S3, Bucket: "images", Region: "r-1", Key: "id", Secret: "hush-hush"})
	ts.Defer(s.Close)
	for suffix, secret := range map[string]string{"": "hush-hush", ".wrong": "wrong-hush"} {
		config := fmt.Sprintf(`{"scheme":"http","endpoint":%q,"region":"r-1","bucket_name":"images","object_prefix":"rafs/",`+
			`"access_key_id":"id","access_key_secret":%q}`, s.Listener.Addr(), secret)
		ts.Check(os.WriteFile(ts.MkAbs(args[0])+suffix, []byte(config), 0o600))
	}
}

// waitLog waits for a program that a script has started. The patience is for
// machines that do something else meanwhile.
func waitLog(ts *testscript.TestScript, _ bool, args []string) {
	pattern := regexp.MustCompile(args[1])
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	var got []byte
	for patience := time.After(30 * time.Second); ; {
		got, _ = os.ReadFile(ts.MkAbs(args[0]))
		if pattern.Match(got) {
			return
		}
		select {
		case <-tick.C:
		case <-patience:
			ts.Fatalf("%s has no line that matches %q:\n%s", args[0], args[1], got)
		}
	}
}

func scrape(ts *testscript.TestScript, _ bool, args []string) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", ts.MkAbs(args[0]))
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://rafsd" + args[1])
	ts.Check(err)
	defer resp.Body.Close()
	_, err = io.Copy(ts.Stdout(), resp.Body)
	ts.Check(err)
}

func flip(ts *testscript.TestScript, _ bool, args []string) {
	b := []byte(ts.ReadFile(args[0]))
	offset, err := strconv.Atoi(args[1])
	ts.Check(err)
	b[offset] ^= 0xff
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
}

func truncate(ts *testscript.TestScript, _ bool, args []string) {
	size, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	ts.Check(os.Truncate(ts.MkAbs(args[0]), size))
}
