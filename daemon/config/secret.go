package config

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/url"
)

const redacted = "[redacted]"

// Secret is a credential. Whatever prints, logs or encodes it says that there is
// one and not what it is; only [Secret.Reveal] returns it.
type Secret struct{ value string }

// NewSecret makes a Secret of a value.
func NewSecret(value string) Secret { return Secret{value} }

// Reveal returns the value, for the one place that sends it.
func (s Secret) Reveal() string { return s.value }

// IsSet reports whether there is a value.
func (s Secret) IsSet() bool { return s.value != "" }

// Equal reports whether two secrets have one value.
func (s Secret) Equal(o Secret) bool { return s.value == o.value }

func (s Secret) String() string {
	if s.value == "" {
		return ""
	}
	return redacted
}

// Format covers every verb, %#v and %d among them, which would print the field.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalJSON encodes the redacted form.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// MarshalText encodes the redacted form, for TOML among others.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue is the redacted form.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// URL is an address that may carry a password in front of its host. It prints
// without it; [URL.Reveal] returns the whole.
type URL struct{ Secret }

// NewURL makes a URL of text that has been checked.
func NewURL(text string) URL { return URL{Secret{text}} }

func (u URL) String() string {
	parsed, err := url.Parse(u.value)
	if err != nil {
		return u.Secret.String()
	}
	return parsed.Redacted()
}

// Equal reports whether two addresses are the same text.
func (u URL) Equal(o URL) bool { return u.Secret.Equal(o.Secret) }

// Format prints the address without its password, whatever the verb.
func (u URL) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, u.String()) }

// MarshalJSON encodes the redacted form.
func (u URL) MarshalJSON() ([]byte, error) { return json.Marshal(u.String()) }

// MarshalText encodes the redacted form.
func (u URL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// LogValue is the redacted form.
func (u URL) LogValue() slog.Value { return slog.StringValue(u.String()) }
