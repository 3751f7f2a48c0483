package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/rafsd/rafsd/rafs/artifact"
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

// rootCAs are the system's authorities and those of files; nil if there are no files.
func rootCAs(files []string) (*x509.CertPool, error) {
	if len(files) == 0 {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	for _, file := range files {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("--ca: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, &usageError{fmt.Errorf("--ca %s: want certificates in PEM, there are none", file)}
		}
	}
	return pool, nil
}
