package httprange

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// ErrNoCertificates means that a file holds no certificate in PEM form.
var ErrNoCertificates = errors.New("no certificate in PEM form")

// CAError names a file of certificate authorities that cannot be used. Err is what
// reading it failed with, or [ErrNoCertificates].
type CAError struct {
	File string
	Err  error
}

func (e *CAError) Error() string { return fmt.Sprintf("certificate authority %s: %v", e.File, e.Err) }
func (e *CAError) Unwrap() error { return e.Err }

// RootCAs are the system's certificate authorities and those of PEM files; nil,
// which is the system's, if there are no files. The error is a [*CAError].
func RootCAs(files []string) (*x509.CertPool, error) {
	if len(files) == 0 {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	for _, file := range files {
		pem, err := os.ReadFile(file)
		if err == nil && !pool.AppendCertsFromPEM(pem) {
			err = ErrNoCertificates
		}
		if err != nil {
			return nil, &CAError{file, err}
		}
	}
	return pool, nil
}
