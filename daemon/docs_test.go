package daemon

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/daemon/metrics"
	"github.com/rafsd/rafsd/internal/testenv"
)

// TestMetricsInDocs holds the table of docs/operating.md to what a daemon shows:
// the same names, kinds, labels and meanings.
func TestMetricsInDocs(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(testenv.ModuleRoot(), "docs", "operating.md"))
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for line := range strings.Lines(string(doc)) {
		if strings.HasPrefix(line, "| `"+metrics.Prefix) {
			documented = append(documented, strings.TrimSpace(line))
		}
	}
	c := coreCase(t, "v6-zstd-blake3")
	address := filepath.Join(t.TempDir(), "m")
	start(t, Options{
		Bootstrap: c.Bootstrap, Config: localConfig(t, c.Blobs[0], t.TempDir()), Metrics: "unix://" + address,
	})
	shown := metricRows(scrape(t, address))
	if len(shown) == 0 {
		t.Fatal("the daemon shows no metrics")
	}
	for _, row := range shown {
		if !slices.Contains(documented, row) {
			t.Errorf("docs/operating.md lacks\n%s", row)
		}
	}
	for _, row := range documented {
		if !slices.Contains(shown, row) {
			t.Errorf("docs/operating.md has what no daemon shows:\n%s", row)
		}
	}
}

func scrape(t *testing.T, socket string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	res, err := client.Get("http://metrics/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(res.Body); err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("metrics: status %d, %v", res.StatusCode, err)
	}
	return text.String()
}

var (
	metricHead = regexp.MustCompile(`(?m)^# HELP (rafsd_\w+) (.*)\n# TYPE \w+ (\w+)\n`)
	metricLine = regexp.MustCompile(`(?m)^(rafsd_\w+)\{(.*)\}`)
	labelName  = regexp.MustCompile(`(\w+)="`)
)

// metricRows turns the text form of metrics into rows of a table, sorted.
func metricRows(text string) (rows []string) {
	labels := map[string][]string{}
	for _, m := range metricLine.FindAllStringSubmatch(text, -1) {
		for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
			if name := "`" + l[1] + "`"; !slices.Contains(labels[m[1]], name) {
				labels[m[1]] = append(labels[m[1]], name)
			}
		}
	}
	for _, m := range metricHead.FindAllStringSubmatch(text, -1) {
		rows = append(rows, fmt.Sprintf("| `%s` | %s | %s | %s |", m[1], m[3], strings.Join(labels[m[1]], ", "), m[2]))
	}
	slices.Sort(rows)
	return rows
}
