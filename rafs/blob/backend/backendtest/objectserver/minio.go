package objectserver

import (
	"bytes"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/testenv"
)

// What MinIO is started with.
const (
	MinIOKey    = "rafsd-test"
	MinIOSecret = "rafsd-test-secret"
	MinIORegion = "eu-test-1"
)

// MinIO runs a MinIO server on loopback, with a bucket, and returns its endpoint. The
// server is a program of its own that must be installed (make minio). It ends with the test.
func MinIO(t testing.TB, bucket string) (endpoint string) {
	t.Helper()
	program, dir := testenv.Peer(t, "minio"), t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, bucket), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	endpoint = l.Addr().String()
	l.Close()
	cmd := exec.Command(program, "server", "--quiet", "--address", endpoint, "--console-address", "127.0.0.1:0", dir)
	cmd.Env = append(os.Environ(), "HOME="+dir, "MINIO_ROOT_USER="+MinIOKey, "MINIO_ROOT_PASSWORD="+MinIOSecret,
		"MINIO_SITE_REGION="+MinIORegion, "MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_CALLHOME_ENABLE=off")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("MinIO said: %s", said.Bytes())
		}
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		// Its own signs of being ready come before it serves objects: who may not read
		// the bucket is told so only then, and 503 before.
		res, err := http.Get("http://" + endpoint + "/" + bucket + "/x")
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusForbidden {
				return endpoint
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("MinIO at %s is not ready after a minute: %v", endpoint, err)
		}
	}
}
