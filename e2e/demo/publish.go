package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/rafsd/rafsd/e2e/registry"
	"github.com/rafsd/rafsd/e2e/rootfs"
)

// published is the image that the machine boots from.
type published struct {
	registry.Image
	reference string
	config    v1.Config
	inodes    uint64
	files     uint64 // bytes of all files together
}

// publish puts the image into the registry in its RAFS form, unless an earlier run
// with the same image and the same rafsd has.
func publish(ctx context.Context, r *registry.Registry, binary, source string) (published, error) {
	var image v1.Image
	var err error
	if source == "" {
		image, err = local(ctx)
	} else {
		image, err = remoteImage(ctx, source)
	}
	if err != nil {
		return published{}, err
	}
	digest, err := image.Digest()
	if err != nil {
		return published{}, err
	}
	build, err := hashFile(binary)
	if err != nil {
		return published{}, err
	}
	target := fmt.Sprintf("%s/demo:%.12s-%.12s", r.Host, digest.Hex, build)
	if source == "" {
		source = fmt.Sprintf("%s/demo:%.12s", r.Host, digest.Hex)
		if err := push(ctx, source, image); err != nil {
			return published{}, err
		}
	}
	if err := convert(ctx, binary, source, target); err != nil {
		return published{}, err
	}
	return survey(ctx, binary, target, image)
}

// local makes an image from the distribution's packages.
func local(ctx context.Context) (v1.Image, error) {
	done := step("root file system")
	suite, err := rootfs.HostSuite()
	if err != nil {
		return nil, err
	}
	image, err := rootfs.Image(ctx, rootfs.Options{Suite: suite, Packages: []string{"python3"}})
	if err != nil {
		return nil, err
	}
	size, err := layersSize(image)
	if err != nil {
		return nil, err
	}
	done("packages of %s, essential ones and Python: an OCI image of %s", suite, bytesText(size))
	return image, nil
}

// remoteImage looks an image up; its layers stay where they are.
func remoteImage(ctx context.Context, source string) (v1.Image, error) {
	done := step("image")
	ref, err := name.ParseReference(source)
	if err != nil {
		return nil, err
	}
	image, err := remote.Image(ref, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"}))
	if err != nil {
		return nil, err
	}
	size, err := layersSize(image)
	if err != nil {
		return nil, err
	}
	done("%s, %s", ref.Name(), bytesText(size))
	return image, nil
}

func layersSize(image v1.Image) (int64, error) {
	manifest, err := image.Manifest()
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, l := range manifest.Layers {
		sum += l.Size
	}
	return sum, nil
}

// push writes the image to the registry; blobs that are there are not sent again.
func push(ctx context.Context, target string, image v1.Image) error {
	done := step("push")
	ref, err := name.ParseReference(target)
	if err != nil {
		return err
	}
	if err := remote.Write(ref, image, remote.WithContext(ctx)); err != nil {
		return err
	}
	done("%s, a registry in this process", target)
	return nil
}

func convert(ctx context.Context, binary, source, target string) error {
	done := step("rafsd convert")
	ref, err := name.ParseReference(target)
	if err != nil {
		return err
	}
	var missing *transport.Error
	_, err = remote.Head(ref, remote.WithContext(ctx))
	switch {
	case err == nil:
		done("%s, from an earlier run", target)
		return nil
	case !errors.As(err, &missing) || missing.StatusCode != http.StatusNotFound:
		return err
	}
	cmd := exec.CommandContext(ctx, binary, "convert", "--platform", "linux/amd64", "--json", source, target)
	var failure bytes.Buffer
	cmd.Stderr = &failure
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("rafsd convert: %w\n%s", err, bytes.TrimSpace(failure.Bytes()))
	}
	done("%s", target)
	return nil
}

// survey asks the registry and rafsd what the image consists of.
func survey(ctx context.Context, binary, target string, image v1.Image) (published, error) {
	p := published{reference: target}
	var err error
	if p.Image, err = registry.Stat(ctx, target); err != nil {
		return p, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return p, err
	}
	p.config = file.Config
	text, err := exec.CommandContext(ctx, binary, "inspect", "--json", target).Output()
	if err != nil {
		return p, fmt.Errorf("rafsd inspect %s: %w", target, err)
	}
	var facts struct {
		Inodes uint64 `json:"inodes"`
		Data   struct {
			Files uint64 `json:"file_bytes"`
		} `json:"data"`
	}
	if err := json.Unmarshal(text, &facts); err != nil {
		return p, fmt.Errorf("rafsd inspect %s: %w", target, err)
	}
	p.inodes, p.files = facts.Inodes, facts.Data.Files
	return p, nil
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// arguments are what the machine runs.
func (p published) arguments(o options) []string {
	switch {
	case o.run != "":
		return []string{"/bin/sh", "-c", o.run}
	case o.image == "":
		return append(append(append([]string{}, p.config.Entrypoint...), p.config.Cmd...), "-c", program)
	}
	return append(append([]string{}, p.config.Entrypoint...), p.config.Cmd...)
}

// program is what the image of this demonstration runs.
var program = strings.TrimSpace(`
import json, os, platform, ssl, sys
release = dict(l.rstrip().split("=", 1) for l in open("/etc/os-release") if "=" in l)
print("Hello from Python", platform.python_version(), "on", release["PRETTY_NAME"].strip('"') + ",", "Linux", platform.release())
print("I am uid", os.getuid(), "in", os.getcwd(), "and have imported", len(sys.modules), "modules.")
`)
