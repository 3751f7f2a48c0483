package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/blob/backend/httprange"
)

// pull fetches the bootstrap of the image that ref names into dir.
func (a *app) pull(ctx context.Context, ref string, f *inspectFlags, dir string) (string, error) {
	parsed, err := parseReference(ref, f.plainHTTP)
	if err != nil {
		return "", &usageError{err}
	}
	roots, err := rootCAs(f.caFiles)
	if err != nil {
		return "", err
	}
	pulled, err := artifact.Pull(ctx, parsed.name, artifact.Options{PlainHTTP: f.plainHTTP, RootCAs: roots}, dir)
	if err != nil {
		return "", err
	}
	return pulled.BootstrapPath, nil
}

// rootCAs are the system's authorities and those of --ca.
func rootCAs(files []string) (*x509.CertPool, error) {
	pool, err := httprange.RootCAs(files)
	var of *httprange.CAError
	switch {
	case !errors.As(err, &of):
		return pool, err
	case errors.Is(of.Err, httprange.ErrNoCertificates):
		return nil, &usageError{fmt.Errorf("--ca %s: want certificates in PEM, there are none", of.File)}
	}
	return nil, fmt.Errorf("--ca: %w", of.Err)
}
