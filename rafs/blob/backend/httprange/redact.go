package httprange

import (
	"errors"
	"net/url"
)

// Redact is u for logs and errors: without user and password, and without query
// and fragment, which carry the signatures of redirects.
func Redact(u *url.URL) string {
	if u == nil {
		return ""
	}
	short := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	return short.String()
}

// RedactError takes the URL out of errors of net/http and net/url.
func RedactError(err error) error {
	var ue *url.Error
	if !errors.As(err, &ue) {
		return err
	}
	return ue.Err
}
