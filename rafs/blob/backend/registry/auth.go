package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/httprange"
)

// keychain picks the source of credentials that the options name.
func keychain(o Options) (authn.Keychain, error) {
	switch {
	case o.RegistryToken != "":
		return fixed{authn.AuthConfig{RegistryToken: o.RegistryToken}}, nil
	case o.Auth != "":
		raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(o.Auth))
		if err != nil {
			return nil, errors.New("auth is not base64") // not err: it quotes its input
		}
		user, pass, ok := strings.Cut(string(raw), ":")
		if !ok {
			return nil, errors.New("auth is not base64 of user:password")
		}
		return fixed{authn.AuthConfig{Username: user, Password: pass}}, nil
	case o.Keychain != nil:
		return o.Keychain, nil
	}
	return authn.DefaultKeychain, nil
}

// fixed is a keychain of one credential.
type fixed struct{ config authn.AuthConfig }

func (f fixed) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(f.config), nil
}

// grant is one answer to "how do we come in". It is immutable.
type grant struct {
	header  string    // value of Authorization; empty is nothing
	expires time.Time // zero if not known
	since   time.Time
}

// margin is how long before its end a token is renewed.
const margin = 10 * time.Second

// stale reports whether a refusal may come from the grant's age rather than from
// a lack of rights. Some registries say 403 to a token that expired.
func (g *grant) stale(status int) bool {
	return status == http.StatusUnauthorized ||
		status == http.StatusForbidden && g != nil && g.header != "" && time.Since(g.since) > 3*margin
}

func (g *grant) usable() bool {
	return g.expires.IsZero() || time.Until(g.expires) > margin
}

// authorizer holds the current grant and renews it. The first request goes out
// without one: a registry that lets everybody in costs no extra round trip.
type authorizer struct {
	ctx       context.Context // of the backend
	repo      name.Repository
	scheme    string
	keychain  authn.Keychain
	transport http.RoundTripper
	timeout   time.Duration
	running   sync.WaitGroup

	mu      sync.Mutex
	current *grant   // nil before the first challenge
	flight  *renewal // nil if none runs
}

// renewal is one exchange of credentials for a grant, shared by all who wait.
type renewal struct {
	done  chan struct{}
	grant *grant
	err   error
}

// get returns the grant to use now, nil for none. A token that is about to end is
// renewed first.
func (a *authorizer) get(ctx context.Context) (*grant, error) {
	a.mu.Lock()
	g := a.current
	a.mu.Unlock()
	if g == nil || g.usable() {
		return g, nil
	}
	return a.renew(ctx, g)
}

// renew replaces the grant that the registry refused. Whoever comes while
// another renews waits for that; whoever held an older grant gets the newer one.
func (a *authorizer) renew(ctx context.Context, refused *grant) (*grant, error) {
	a.mu.Lock()
	if a.current != refused && a.current != nil && a.current.usable() {
		g := a.current
		a.mu.Unlock()
		return g, nil
	}
	f := a.flight
	if f == nil && a.ctx.Err() != nil {
		a.mu.Unlock()
		return nil, backend.ErrClosed
	}
	if f == nil {
		f = &renewal{done: make(chan struct{})}
		a.flight = f
		a.running.Go(func() { a.run(f) })
	}
	a.mu.Unlock()
	select {
	case <-f.done:
		return f.grant, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// run renews under the backend's context: a reader that leaves fails no other.
func (a *authorizer) run(f *renewal) {
	ctx, cancel := context.WithTimeout(a.ctx, a.timeout)
	defer cancel()
	f.grant, f.err = a.exchange(ctx)
	a.mu.Lock()
	if f.err == nil {
		f.grant.since = time.Now()
		a.current = f.grant
	}
	a.flight = nil
	a.mu.Unlock()
	close(f.done)
}

// wait ends when no renewal runs any more. The backend's context has ended.
func (a *authorizer) wait() {
	a.mu.Lock() // whoever starts one under the lock later sees the end of the context
	defer a.running.Wait()
	a.mu.Unlock()
}

// exchange asks the keychain for credentials and the registry for its challenge,
// and makes a grant of both.
func (a *authorizer) exchange(ctx context.Context) (*grant, error) {
	auth, err := authn.Resolve(ctx, a.keychain, a.repo)
	if err != nil {
		// A helper asks a service of its own, which may be down for a while.
		return nil, fmt.Errorf("%w: credentials for %s: %w", backend.ErrUnavailable, a.repo, err)
	}
	config, err := authn.Authorization(ctx, auth)
	if err != nil {
		return nil, fmt.Errorf("%w: credentials for %s: %w", backend.ErrUnavailable, a.repo, err)
	}
	if config.RegistryToken != "" {
		return &grant{header: "Bearer " + config.RegistryToken}, nil
	}
	rt := pinned{a.transport, a.scheme, a.repo.RegistryStr()}
	challenge, err := transport.Ping(ctx, a.repo.Registry, rt)
	if err != nil {
		return nil, a.fail("ping", err)
	}
	switch strings.ToLower(challenge.Scheme) {
	case "":
		return &grant{}, nil
	case "basic":
		if config.Username == "" && config.Password == "" {
			return nil, fmt.Errorf("%w: %s wants a password and there is none for it", backend.ErrDenied, a.repo)
		}
		pair := config.Username + ":" + config.Password
		return &grant{header: "Basic " + base64.StdEncoding.EncodeToString([]byte(pair))}, nil
	case "bearer":
		scopes := []string{a.repo.Scope(transport.PullScope)}
		token, err := transport.Exchange(ctx, a.repo.Registry, auth, rt, scopes, challenge)
		if err != nil {
			return nil, a.fail("token", err)
		}
		return tokenGrant(token)
	}
	return nil, fmt.Errorf("%w: %s wants authorization by %.20q", backend.ErrDenied, a.repo, challenge.Scheme)
}

// maxToken bounds a token: it goes into the header of each request.
const maxToken = 16 << 10

func tokenGrant(t *transport.Token) (*grant, error) {
	value := t.Token
	if value == "" {
		value = t.AccessToken
	}
	if value == "" || len(value) > maxToken {
		return nil, fmt.Errorf("%w: token of %d bytes, want 1 to %d", backend.ErrUnavailable, len(value), maxToken)
	}
	g := &grant{header: "Bearer " + value}
	// A life below twice the margin would be renewed by each request: let a 401 say so.
	if life := time.Duration(min(t.ExpiresIn, 1<<20)) * time.Second; life > 2*margin {
		g.expires = time.Now().Add(life)
	}
	return g, nil
}

// fail sorts an error of the exchange. Only the registry's word is permanent.
func (a *authorizer) fail(step string, err error) error {
	kind := backend.ErrUnavailable
	var te *transport.Error
	if errors.As(err, &te) {
		kind = (&backend.StatusError{Status: te.StatusCode}).Unwrap()
		if kind == backend.ErrNotFound || kind == backend.ErrRange {
			kind = backend.ErrDenied
		}
	} else if httprange.Denied(err) || strings.Contains(err.Error(), "invalid realm") {
		kind = backend.ErrDenied
	}
	return fmt.Errorf("%w: %s of %s: %w", kind, step, a.repo.RegistryStr(), httprange.RedactError(err))
}

// pinned refuses requests to the registry's host by another scheme than the
// configured one, which Ping tries for hosts that look local.
type pinned struct {
	http.RoundTripper
	scheme, host string
}

func (p pinned) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != p.scheme && (r.URL.Host == p.host || p.scheme == "https") {
		return nil, fmt.Errorf("refused to ask %s by %s", r.URL.Host, r.URL.Scheme)
	}
	return p.RoundTripper.RoundTrip(r)
}
