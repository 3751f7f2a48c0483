package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
)

// Note is something about a configuration that its author should know although
// it is no error.
type Note struct {
	// Level is slog.LevelWarn for what is probably a mistake, else slog.LevelInfo.
	Level slog.Level
	// Key is the path of the key, with dots.
	Key string
	// Text says what about it.
	Text string
}

func (n Note) String() string { return n.Key + ": " + n.Text }

// decoder collects what is wrong and what is odd in one configuration.
type decoder struct {
	problems   []error
	notes      []Note
	verifySaid bool
}

func (d *decoder) problem(key, format string, args ...any) {
	d.problems = append(d.problems, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
}

func (d *decoder) warn(key, format string, args ...any) {
	d.notes = append(d.notes, Note{slog.LevelWarn, key, fmt.Sprintf(format, args...)})
}

func (d *decoder) info(key, format string, args ...any) {
	d.notes = append(d.notes, Note{slog.LevelInfo, key, fmt.Sprintf(format, args...)})
}

func (d *decoder) err() error { return errors.Join(d.problems...) }

// node is one table of the file while its keys are taken out. Every method that
// takes a key makes it known; end names those that nobody took.
type node struct {
	d      *decoder
	path   string
	values map[string]any
	known  []string
}

func (n *node) key(key string) string {
	if n.path == "" {
		return key
	}
	return n.path + "." + key
}

// take returns the value of a key. A JSON null is as good as no key.
func (n *node) take(key string) (any, bool) {
	n.known = append(n.known, key)
	v, ok := n.values[key]
	return v, ok && v != nil
}

// has reports whether the key is there, without making it known.
func (n *node) has(key string) bool { return n.values[key] != nil }

// skip makes keys known that have no effect and deserve no word about it.
func (n *node) skip(keys ...string) { n.known = append(n.known, keys...) }

// sub returns a table. One that is absent is empty.
func (n *node) sub(key string) (t *node, ok bool) {
	t = &node{d: n.d, path: n.key(key)}
	v, ok := n.take(key)
	if !ok {
		return t, false
	}
	values, isTable := v.(map[string]any)
	if !isTable {
		n.d.problem(n.key(key), "want a table, got %s", kind(v))
		return t, false
	}
	t.values = values
	return t, true
}

func (n *node) str(key string, dst *string) {
	v, ok := n.take(key)
	if !ok {
		return
	}
	s, ok := v.(string)
	switch {
	case !ok:
		n.d.problem(n.key(key), "want a string, got %s", kind(v))
	case strings.ContainsRune(s, 0):
		n.d.problem(n.key(key), "want a string without zero bytes")
	default:
		*dst = s
	}
}

func (n *node) oneOf(key string, dst *string, want ...string) {
	s := *dst
	n.str(key, &s)
	if s != *dst && !slices.Contains(want, s) {
		n.d.problem(n.key(key), "want %s, got %q", either(want), s)
		return
	}
	*dst = s
}

func (n *node) secret(key string, dst *Secret) {
	v, ok := n.take(key)
	if !ok {
		return
	}
	s, ok := v.(string)
	if !ok {
		n.d.problem(n.key(key), "want a string, got %s", kind(v))
		return
	}
	*dst = NewSecret(s)
}

func (n *node) boolean(key string, dst *bool) {
	v, ok := n.take(key)
	if !ok {
		return
	}
	b, ok := v.(bool)
	if !ok {
		n.d.problem(n.key(key), "want true or false, got %s", kind(v))
		return
	}
	*dst = b
}

func (n *node) integer(key string, dst *int64, low, high int64) {
	v, ok := n.take(key)
	if !ok {
		return
	}
	i, ok := whole(v)
	if !ok || i < low || i > high {
		n.d.problem(n.key(key), "want a whole number from %d to %d, got %s", low, high, kind(v))
		return
	}
	*dst = i
}

func (n *node) strings(key string, dst *[]string) {
	v, ok := n.take(key)
	if !ok {
		return
	}
	list, ok := v.([]any)
	if !ok {
		n.d.problem(n.key(key), "want a list of strings, got %s", kind(v))
		return
	}
	out := make([]string, 0, len(list))
	for i, e := range list {
		s, ok := e.(string)
		if !ok || s == "" {
			n.d.problem(fmt.Sprintf("%s[%d]", n.key(key), i), "want a string that is not empty, got %s", kind(e))
			return
		}
		out = append(out, s)
	}
	if len(out) > 0 {
		*dst = out
	}
}

// end warns of every key that nobody took.
func (n *node) end() {
	var unknown []string
	for k := range n.values {
		if !slices.Contains(n.known, k) {
			unknown = append(unknown, k)
		}
	}
	slices.Sort(unknown)
	for _, k := range unknown {
		if s := Nearest(k, n.known); s != "" {
			n.d.warn(n.key(k), "unknown key, ignored; did you mean %s?", s)
		} else {
			n.d.warn(n.key(k), "unknown key, ignored")
		}
	}
}

// whole converts the integers of both formats. JSON writes 1e3 and 5.0 too, which
// are taken as nydusd takes them: not at all.
func whole(v any) (int64, bool) {
	switch v := v.(type) {
	case int64:
		return v, true
	case json.Number:
		i, err := v.Int64()
		return i, err == nil
	}
	return 0, false
}

// kind describes a value for an error message, without its text where that might
// be long or secret.
func kind(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		return "a string"
	case bool:
		return fmt.Sprintf("%t", v)
	case int64:
		return fmt.Sprintf("%d", v)
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1e15 {
			return fmt.Sprintf("%.1f", v)
		}
		return fmt.Sprintf("%g", v)
	case json.Number:
		return fmt.Sprintf("%.40s", v.String())
	case []any, []map[string]any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "a date"
}

func either(words []string) string {
	quoted := make([]string, 0, len(words))
	for _, w := range words {
		quoted = append(quoted, fmt.Sprintf("%q", w))
	}
	if len(quoted) < 2 {
		return strings.Join(quoted, "")
	}
	last := len(quoted) - 1
	return strings.Join(quoted[:last], ", ") + " or " + quoted[last]
}

// Nearest returns the word that somebody who wrote got most likely meant: one
// that is a few letters away, or of which got is a part or which is a part of got; empty if there is none.
func Nearest(got string, words []string) string {
	best, bestDistance := "", max(2, len(got)/4)+1
	for _, w := range words {
		d := distance(strings.ToLower(got), w)
		if len(w) >= 4 && len(got) >= 4 && (strings.HasPrefix(got, w) || strings.HasPrefix(w, got)) {
			d = min(d, 2)
		}
		if d < bestDistance && d < len(w) {
			best, bestDistance = w, d
		}
	}
	return best
}

// distance is the number of letters to insert, delete or replace (Levenshtein).
// Long words are not worth the work.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return math.MaxInt
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
