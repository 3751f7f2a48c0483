package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/object"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/convert/containerd"
	"github.com/rafsd/rafsd/rafs/image"
)

// Exit codes.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitRefused     = 3
	exitSource      = 4
	exitInterrupted = 130
)

const exitCodesHelp = `Exit codes:
    0  done
    1  failed for another reason than those below
    2  the command line or the configuration is wrong
    3  the image was refused: corrupt, not supported, or a digest does not match
    4  a registry or another source of blobs cannot be reached or refused the request
  130  interrupted by a signal before it was done`

// usageError is a mistake in the command line or in the configuration.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// report prints an error, what to do about it, and returns its exit code.
func (a *app) report(cmd *cobra.Command, err error) int {
	code := exitCode(err)
	if code == exitInterrupted {
		fmt.Fprintf(a.stderr, "%s: interrupted\n", cmd.CommandPath())
		return code
	}
	fmt.Fprintf(a.stderr, "%s: %v\n", cmd.CommandPath(), err)
	if h := hint(cmd, err); h != "" {
		fmt.Fprintf(a.stderr, "%s\n", h)
	}
	return code
}

func exitCode(err error) int {
	var status *transport.Error
	var urlErr *url.Error
	var netErr *net.OpError
	var backendErr *backend.StatusError
	switch {
	case errors.As(err, new(*usageError)):
		return exitUsage
	case isAny(err, image.ErrCorrupt, image.ErrUnsupported, image.ErrDigest, blob.ErrDigest, blob.ErrCorrupt, blob.ErrBadID,
		artifact.ErrNotRAFS, tree.ErrRefused, errFindings):
		return exitRefused
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case isAny(err, backend.ErrNotFound, backend.ErrDenied, backend.ErrRange, backend.ErrUnavailable),
		errors.As(err, &status), errors.As(err, &backendErr), errors.As(err, &urlErr),
		errors.As(err, &netErr) && netErr.Op != "listen":
		return exitSource
	}
	return exitError
}

func isAny(err error, targets ...error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}

// hint says what to do next, where that is known.
func hint(cmd *cobra.Command, err error) string {
	var status *transport.Error
	code := 0
	if errors.As(err, &status) {
		code = status.StatusCode
	}
	switch {
	case errors.As(err, new(*usageError)):
		return fmt.Sprintf("Try '%s --help'.", cmd.CommandPath())
	case errors.As(err, new(*containerd.UnreachableError)):
		return "Start containerd, or say where it listens with --containerd-address; without it, --upper FOLDER does."
	case cmd.Name() == "commit" && (errors.Is(err, artifact.ErrNotRAFS) || code == 404):
		return "Changes go on top of a RAFS image: make one of it with 'rafsd convert', and name that as SRC."
	case errors.As(err, new(*object.Error)) && errors.Is(err, backend.ErrDenied):
		return "The store refused the request: check access_key_id, access_key_secret and region, and what the key may do in the bucket."
	case code == 401 || code == 403 || errors.Is(err, backend.ErrDenied):
		return "The registry refused the credentials: log in with 'docker login', or set IMAGE_PULL_AUTH."
	case code == 404 || errors.Is(err, backend.ErrNotFound):
		return "Check the name and the tag; 'rafsd inspect' shows which blobs an image needs."
	case errors.Is(err, image.ErrUnsupported):
		return "The image uses a feature that this version does not read; convert it again with 'rafsd convert'."
	case isAny(err, image.ErrCorrupt, blob.ErrDigest, blob.ErrCorrupt):
		return "The data is not what its digests say: fetch or convert the image again."
	case errors.Is(err, syscall.ECONNREFUSED):
		return "Nothing listens there: check the address, and --plain-http if the registry has no TLS."
	case errors.Is(err, syscall.ENOSPC):
		return "Make room on the file system, or choose another folder."
	case errors.Is(err, fs.ErrPermission):
		return "Check who owns the path; rafsd itself needs no root."
	}
	return ""
}
