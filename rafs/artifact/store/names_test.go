package store

import (
	"strings"
	"testing"

	"github.com/rafsd/rafsd/rafs/artifact"
)

// A name without a place is a mistake, often of a script's: it is neither the
// working folder nor an image of a registry.
func TestNamesWithoutPlace(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"oci:", "oci::v1", "oci-archive:", "oci-archive::v1", "docker-archive:", "file://"} {
		if s, err := OpenSource(t.Context(), name, artifact.Options{}, ""); err == nil || !strings.Contains(err.Error(), "want a path behind it") {
			t.Errorf("source %q: got %v, %v", name, s, err)
		}
		if d, err := OpenTarget(t.Context(), name, artifact.Options{}, Push{}); err == nil || !strings.Contains(err.Error(), "want a path behind it") {
			t.Errorf("target %q: got %v, %v", name, d, err)
		}
	}
	if d, err := OpenTarget(t.Context(), "docker-archive:a.tar", artifact.Options{}, Push{}); err == nil || !strings.Contains(err.Error(), "read only") {
		t.Errorf("docker-archive: got %v, %v", d, err)
	}
}
