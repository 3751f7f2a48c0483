package kernel

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseDepends(t *testing.T) {
	const text = `linux-image-6.1.0-56-cloud-amd64
  Depends: kmod
  PreDepends: linux-base
 |Depends: initramfs-tools
  Depends: <linux-initramfs-tool>
    dracut
    initramfs-tools
 |Depends: linux-modules-6.1
 |Depends: linux-modules-older
  Depends: linux-modules-oldest
  Recommends: firmware
`
	want := []string{"kmod", "linux-base", "initramfs-tools", "linux-modules-6.1"}
	if got := parseDepends(text); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestResolve(t *testing.T) {
	unknown := errors.New("no packages found")
	debian := map[string][]string{
		"linux-image-cloud-amd64":          {"linux-image-6.1.0-56-cloud-amd64"},
		"linux-image-6.1.0-56-cloud-amd64": {"kmod", "linux-base"},
	}
	ubuntu := map[string][]string{
		"linux-image-virtual":            {"linux-image-6.8.0-31-generic", "linux-firmware"},
		"linux-image-6.8.0-31-generic":   {"kmod", "linux-modules-6.8.0-31-generic"},
		"linux-modules-6.8.0-31-generic": {"linux-image-6.8.0-31-generic"},
	}
	for _, tc := range []struct {
		name  string
		known map[string][]string
		want  []string
	}{
		{"debian", debian, []string{"linux-image-6.1.0-56-cloud-amd64"}},
		{"ubuntu", ubuntu, []string{"linux-image-6.8.0-31-generic", "linux-modules-6.8.0-31-generic"}},
		{"neither", nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := resolve(t.Context(), func(_ context.Context, name string) ([]string, error) {
				list, found := tc.known[name]
				if !found {
					return nil, unknown
				}
				return slices.Clone(list), nil
			})
			if !slices.Equal(got, tc.want) || (err == nil) != (tc.want != nil) {
				t.Errorf("got %q, %v, want %q", got, err, tc.want)
			}
			if err != nil && !strings.Contains(err.Error(), "apt-get update") {
				t.Errorf("error %v says nothing of what to do", err)
			}
		})
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	if _, err := find(dir); err == nil {
		t.Errorf("an empty folder was taken for a kernel")
	}
	for _, d := range []string{"boot", "usr/lib/modules/6.12.1"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "boot/vmlinuz-6.12.1"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	want := Kernel{"6.12.1", filepath.Join(dir, "boot/vmlinuz-6.12.1"), filepath.Join(dir, "usr/lib/modules/6.12.1")}
	if got, err := find(dir); got != want || err != nil {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}
