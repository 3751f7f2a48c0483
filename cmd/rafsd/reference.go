package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// imageReference is an image in a registry, taken apart.
type imageReference struct {
	name       string // whole, with host and tag or digest
	host, repo string
	loopback   bool
}

func parseReference(s string, plainHTTP bool) (*imageReference, error) {
	options := []name.Option{name.WeakValidation}
	if plainHTTP {
		options = append(options, name.Insecure)
	}
	ref, err := name.ParseReference(strings.TrimPrefix(s, "docker://"), options...)
	if err != nil {
		return nil, fmt.Errorf("image %q: want HOST/REPOSITORY:TAG or HOST/REPOSITORY@sha256:DIGEST: %w", s, err)
	}
	host := ref.Context().RegistryStr()
	return &imageReference{
		name: ref.Name(), host: host, repo: ref.Context().RepositoryStr(), loopback: isLoopback(host),
	}, nil
}

func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

const (
	// maxPrefetchList bounds a prefetch list in bytes, maxPrefetchLine one path.
	maxPrefetchList = 16 << 20
	maxPrefetchLine = 4096
)

// readPrefetchFiles reads absolute paths, one a line. Empty lines are skipped.
func readPrefetchFiles(path string) ([]string, error) {
	var in io.Reader = os.Stdin
	switch path {
	case "":
		return nil, nil
	case "-":
	default:
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("--prefetch-files: %w", err)
		}
		defer f.Close()
		in = f
	}
	scan := bufio.NewScanner(io.LimitReader(in, maxPrefetchList))
	scan.Buffer(nil, maxPrefetchLine+1)
	var out []string
	for number := 1; scan.Scan(); number++ {
		line := strings.TrimSpace(scan.Text())
		switch {
		case line == "":
		case line[0] != '/':
			return nil, &usageError{fmt.Errorf("--prefetch-files %s: line %d: want an absolute path in the image, got %.80q", path, number, line)}
		default:
			out = append(out, line)
		}
	}
	if err := scan.Err(); err != nil {
		return nil, fmt.Errorf("--prefetch-files %s: after %d paths: %w", path, len(out), err)
	}
	return out, nil
}
