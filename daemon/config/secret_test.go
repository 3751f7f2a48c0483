package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

// Nothing that prints, logs or encodes a configuration shows a credential.
func TestSecretsStayInside(t *testing.T) {
	const password, token, proxy = "aHVudGVyOmh1bnRlcjI=", "tok-hunter3", "hunter4"
	text := strings.NewReplacer("dTpw", password, `"tok"`, `"`+token+`"`, "u:p@", "u:"+proxy+"@").Replace(registryV1)
	c, _ := mustParse(t, text)
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%t"} {
		fmt.Fprintf(&out, verb+"\n", c)
		fmt.Fprintf(&out, verb+"\n", *c)
		fmt.Fprintf(&out, verb+"\n", c.Backend.Registry)
		fmt.Fprintf(&out, verb+"\n", []any{c.Backend.Registry.Auth, &c.Backend.Registry.Token, c.Backend.Registry.HTTP})
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		r := c.Backend.Registry
		slog.New(h).Info("m", "config", c, "registry", r, "auth", r.Auth, "url", r.HTTP.Proxy.URL, "http", &r.HTTP)
	}
	for _, v := range []any{c, c.Backend, c.Backend.Registry} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
		if err := toml.NewEncoder(&out).Encode(v); err != nil {
			t.Fatal(err)
		}
	}
	out.Write(c.Encode(false))
	for _, secret := range []string{password, token, proxy, "hunter", fmt.Sprintf("%x", password), fmt.Sprintf("%x", token)} {
		if i := strings.Index(out.String(), secret); i >= 0 {
			t.Errorf("%q shows: %.120q", secret, out.String()[max(0, i-60):])
		}
	}
	if n := strings.Count(out.String(), redacted); n < 20 {
		t.Errorf("%q appears %d times, want that it says where a secret is", redacted, n)
	}
	if !bytes.Contains(c.Encode(true), []byte(token)) {
		t.Error("Encode(true) lost the token")
	}
}

func TestBadSecretsAreNotQuoted(t *testing.T) {
	for _, text := range []string{
		registry("auth", "hunter2 hunter2"),
		`{"version":2,"backend":{"type":"registry","registry":{"host":"h","repo":"r","auth":["hunter2"]}}}`,
		`{"version":2,"backend":{"type":"registry","registry":{"host":"u:hunter2@h","repo":"r"}}}`,
		`{"version":2,"backend":{"type":"registry","registry":{"host":"h","repo":"r","proxy":{"url":"//u:hunter2@h"}}}}`,
	} {
		if _, _, err := Parse([]byte(text)); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("error %v, want one that does not quote the secret", err)
		}
	}
}
