package httprange

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

func TestRootCAs(t *testing.T) {
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good"), filepath.Join(dir, "bad")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := errors.Join(os.WriteFile(good, block, 0o600), os.WriteFile(bad, []byte("no certificate"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if pool, err := RootCAs(nil); pool != nil || err != nil {
		t.Errorf("no files: got %v, %v, want the system's", pool, err)
	}
	pool, err := RootCAs([]string{good})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := server.Certificate().Verify(x509.VerifyOptions{Roots: pool}); err != nil {
		t.Errorf("an authority of a file is not trusted: %v", err)
	}
	for file, want := range map[string]error{bad: ErrNoCertificates, filepath.Join(dir, "none"): fs.ErrNotExist} {
		_, err := RootCAs([]string{good, file})
		var of *CAError
		if !errors.As(err, &of) || of.File != file || !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v of it", file, err, want)
		}
	}
}
