package metrics

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
)

// start serves r on addr until the test ends and returns a client and a base URL.
func start(t *testing.T, addr string, r *Registry, health func() error) (*http.Client, string) {
	t.Helper()
	s, err := NewServer(addr, r, health, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, s.Addr().Network(), s.Addr().String())
	}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return &http.Client{Transport: transport}, "http://metrics"
}

func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func newRegistry(t *testing.T, sources ...Source) *Registry {
	t.Helper()
	r, err := New("1.2.3", sources...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestScrape(t *testing.T) {
	testenv.LeakCheck(t)
	var reads atomic.Int64
	r := newRegistry(t, func() []Sample {
		return []Sample{
			{Name: "reads_total", Help: "Reads.", Value: float64(reads.Add(1)), Labels: []Label{{"source", "cache"}}},
			{Name: "reads_total", Help: "Reads.", Value: 7, Labels: []Label{{"source", "fetch"}}},
			{Name: "flights", Help: "Flights.", Kind: Gauge, Value: 3},
			{
				Name: "read_seconds", Help: "Latency.", Kind: Histogram, Value: 3, Sum: 0.5,
				Buckets: []Bucket{{0.001, 1}, {0.1, 2}},
			},
		}
	})
	for _, addr := range []string{"127.0.0.1:0", "localhost:0", "unix://" + filepath.Join(t.TempDir(), "m.sock")} {
		reads.Store(0)
		c, base := start(t, addr, r, nil)
		for scrape := range 2 {
			status, text := get(t, c, base+"/metrics")
			want := []string{
				"# TYPE rafsd_reads_total counter",
				`rafsd_reads_total{source="cache"} ` + string(rune('1'+scrape)),
				`rafsd_reads_total{source="fetch"} 7`,
				"# TYPE rafsd_flights gauge", "rafsd_flights 3",
				"# TYPE rafsd_read_seconds histogram",
				`rafsd_read_seconds_bucket{le="0.1"} 2`, `rafsd_read_seconds_bucket{le="+Inf"} 3`,
				"rafsd_read_seconds_sum 0.5", "rafsd_read_seconds_count 3",
				`version="1.2.3"`, "rafsd_goroutines ", "process_resident_memory_bytes ", "process_open_fds ",
			}
			for _, w := range want {
				if !strings.Contains(text, w) {
					t.Errorf("%s: scrape %d (status %d) lacks %q:\n%s", addr, scrape, status, w, text)
				}
			}
		}
	}
}

// A source that contradicts itself costs its own samples and a log line, not the scrape.
func TestBadSampleIsNamed(t *testing.T) {
	var log bytes.Buffer
	r := newRegistry(t,
		func() []Sample { return []Sample{{Name: "bad", Help: "h", Labels: []Label{{"l", "\xff"}}}} },
		func() []Sample { return []Sample{{Name: "good", Help: "h", Kind: Gauge, Value: 1}} })
	s, err := NewServer("127.0.0.1:0", r, nil, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	status, text := get(t, http.DefaultClient, "http://"+s.Addr().String()+"/metrics")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if status != http.StatusOK || !strings.Contains(text, "rafsd_good 1") {
		t.Errorf("status %d, %q; want the good sample", status, text)
	}
	if !strings.Contains(log.String(), Prefix+"bad") {
		t.Errorf("log %q, want the name of the bad sample", log.String())
	}
}

func TestHealth(t *testing.T) {
	var sick atomic.Bool
	c, base := start(t, "127.0.0.1:0", newRegistry(t), func() error {
		if sick.Load() {
			return errors.New("ring 1 stopped")
		}
		return nil
	})
	if status, text := get(t, c, base+"/healthz"); status != http.StatusOK || text != "ok\n" {
		t.Errorf("healthy: %d %q, want 200 ok", status, text)
	}
	sick.Store(true)
	if status, text := get(t, c, base+"/healthz"); status != http.StatusServiceUnavailable || text != "ring 1 stopped\n" {
		t.Errorf("sick: %d %q, want 503 and the reason", status, text)
	}
	if status, _ := get(t, c, base+"/debug/pprof/"); status != http.StatusNotFound {
		t.Errorf("another path: %d, want 404", status)
	}
}

func TestAddresses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	live, err := net.Listen("unix", filepath.Join(dir, "live"))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	for addr, want := range map[string]string{
		"":                                       "want unix:///PATH or HOST:PORT",
		"9090":                                   "want unix:///PATH or HOST:PORT",
		":9090":                                  "want an address of the loopback interface, such as 127.0.0.1:9090",
		"0.0.0.0:9090":                           "want an address of the loopback interface",
		"[::]:9090":                              "want an address of the loopback interface",
		"192.0.2.1:9090":                         "want an address of the loopback interface",
		"example.com:9090":                       "want an address of the loopback interface",
		"unix://relative":                        "want an absolute path",
		"unix://" + file:                         "no socket",
		"unix://" + dir + "/live":                "another process listens there",
		"unix:///" + strings.Repeat("x", 110):    "at most 107",
		"unix://" + dir + "/absent/metrics.sock": "no such file",
	} {
		s, err := NewServer(addr, newRegistry(t), nil, slog.New(slog.DiscardHandler))
		if err == nil {
			s.Close()
			t.Errorf("%q: accepted", addr)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %q, want one with %q", addr, err, want)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "x" {
		t.Errorf("the file in the way is now %q, %v", b, err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	s, err := NewServer("unix://"+path, newRegistry(t), nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v, %v; want mode 0660", st, err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}
