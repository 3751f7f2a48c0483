package faultserver

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
)

// auth decides who comes in: anybody, a user with a password, or whoever has a
// token that /token gave out.
type auth struct {
	mu         sync.Mutex
	scheme     string // "", "basic" or "bearer"
	user, pass string // both empty: /token serves anybody
	issued     int
	oldest     int // tokens with a smaller number have expired
	expiresIn  int // seconds, as told to clients
	realm      string
}

// RequireBasic lets in only those who send this user and password.
func (s *Server) RequireBasic(user, pass string) { s.auth.set("basic", user, pass) }

// RequireToken lets in only those who send a token of this server's /token, which
// itself wants user and password unless both are empty.
func (s *Server) RequireToken(user, pass string) { s.auth.set("bearer", user, pass) }

// ExpireTokens makes all tokens that were given out worthless.
func (s *Server) ExpireTokens() {
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	s.auth.oldest = s.auth.issued + 1
}

// SetTokenLife sets the expires_in, in seconds, that /token tells; 0 tells none.
func (s *Server) SetTokenLife(seconds int) {
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	s.auth.expiresIn = seconds
}

// SetRealm makes the server name another place for tokens than its own /token.
func (s *Server) SetRealm(url string) {
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	s.auth.realm = url
}

// TokensIssued is how many tokens were given out.
func (s *Server) TokensIssued() int {
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	return s.auth.issued
}

func (a *auth) set(scheme, user, pass string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.scheme, a.user, a.pass = scheme, user, pass
}

// serve answers requests for tokens and those that may not come in.
func (a *auth) serve(w http.ResponseWriter, r *http.Request) (done bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.URL.Path == "/token" {
		a.token(w, r)
		return true
	}
	var ok bool
	switch a.scheme {
	case "":
		return false
	case "basic":
		user, pass, has := r.BasicAuth()
		ok = has && user == a.user && pass == a.pass
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	case "bearer":
		var n int
		_, err := fmt.Sscanf(r.Header.Get("Authorization"), "Bearer token-%d", &n)
		ok = err == nil && n >= a.oldest && n <= a.issued
		realm := a.realm
		if realm == "" {
			realm = scheme(r) + "://" + r.Host + "/token"
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="test"`, realm))
	}
	if ok {
		w.Header().Del("WWW-Authenticate")
		return false
	}
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

func scheme(r *http.Request) string {
	if r.TLS != nil {
		return "https"
	}
	return "http"
}

func (a *auth) token(w http.ResponseWriter, r *http.Request) {
	user, pass, _ := r.BasicAuth()
	scope := r.URL.Query().Get("scope")
	if user != a.user || pass != a.pass || !strings.HasPrefix(scope, "repository:") || !strings.HasSuffix(scope, ":pull") {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	a.issued++
	answer := map[string]any{"token": fmt.Sprintf("token-%d", a.issued)}
	if a.expiresIn > 0 {
		answer["expires_in"] = a.expiresIn
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}
