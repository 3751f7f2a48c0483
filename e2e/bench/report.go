package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what a run found, as it is printed and as JSON.
type report struct {
	Time     time.Time       `json:"time"`
	CPUs     int             `json:"cpus"`
	Busy     float64         `json:"load_average"` // of the last minute, before the run
	Tree     string          `json:"tree,omitempty"`
	Maker    string          `json:"image_made_by,omitempty"`
	Entries  int             `json:"entries,omitempty"`
	Rounds   int             `json:"rounds"`
	Duration string          `json:"duration"`
	Layout   int             `json:"layout"` // of vhostusertest.DataLayout
	EventIdx bool            `json:"event_idx"`
	Servers  []*serverReport `json:"servers,omitempty"`
	Rows     []rowReport     `json:"rows,omitempty"`
	Density  []densityReport `json:"density,omitempty"`
	Builds   []buildReport   `json:"builds,omitempty"`
	Huge     []hugeReport    `json:"huge,omitempty"`
	// Missing are the programs that were not found, each with what that means.
	Missing []string `json:"missing,omitempty"`
}

type serverReport struct {
	Name    string `json:"name"`
	Program string `json:"program"`
	Peer    bool   `json:"peer"`
	// Checked is how many entries of the tree were compared, content included.
	Checked int `json:"checked"`
	// Restarts is how often the daemon had to be started again because it did
	// not answer INIT.
	Restarts int       `json:"restarts"`
	Memory   memoryUse `json:"memory_bytes"`
	// From exec until the socket is there, one daemon alone.
	ListenMS      float64 `json:"exec_to_socket_ms"`
	ListenWorstMS float64 `json:"exec_to_socket_worst_ms"`
}

type rowReport struct {
	Name  string       `json:"name"`
	Unit  string       `json:"unit"`
	Cells []cellReport `json:"cells"`
}

// cellReport is one daemon in one row: medians over the rounds.
type cellReport struct {
	Server   string    `json:"server"`
	Value    float64   `json:"value"`
	P50us    float64   `json:"p50_us"`
	P99us    float64   `json:"p99_us"`
	Rounds   []float64 `json:"rounds"`
	ToBest   float64   `json:"to_best_peer,omitempty"` // median of the rounds' ratios
	ToNydusd float64   `json:"to_nydusd,omitempty"`
}

func newReport(o *options) *report {
	r := &report{
		Time: time.Now().UTC().Truncate(time.Second), CPUs: runtime.NumCPU(), Rounds: o.rounds,
		Duration: o.duration.String(), Layout: int(o.layout), EventIdx: !o.noEventIdx,
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(b), &r.Busy)
	}
	return r
}

func (r *report) addServers(img *image, found []server) {
	r.Maker = img.maker
	for _, s := range found {
		r.Servers = append(r.Servers, &serverReport{Name: s.name, Program: s.program, Peer: s.peer})
	}
}

// leaveOut notes that a program is not there, now and below the tables.
func (r *report) leaveOut(name, so string) {
	line := name + " was not found: " + so
	if !slices.Contains(r.Missing, line) {
		r.Missing = append(r.Missing, line)
		fmt.Fprintln(os.Stderr, line)
	}
}

func (r *report) server(name string) *serverReport {
	i := slices.IndexFunc(r.Servers, func(s *serverReport) bool { return s.Name == name })
	return r.Servers[i]
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// addRow turns the samples of a row, samples[daemon][round], into medians and
// ratios. A ratio is taken within a round, where the machine was alike.
func (r *report) addRow(w row, loads []*load, samples [][]sample) {
	out := rowReport{Name: w.name, Unit: w.unit}
	for i, l := range loads {
		var value, p50, p99, best, nydusd []float64
		for round, s := range samples[i] {
			value = append(value, s.value)
			p50 = append(p50, float64(s.p50)/1e3)
			p99 = append(p99, float64(s.p99)/1e3)
			var top float64
			for j, other := range loads {
				v := samples[j][round].value
				if other.peer && j != i {
					top = max(top, v)
				}
				if other.name == "nydusd" && j != i {
					nydusd = append(nydusd, s.value/v)
				}
			}
			if top > 0 {
				best = append(best, s.value/top)
			}
		}
		out.Cells = append(out.Cells, cellReport{
			Server: l.name, Value: median(value), P50us: median(p50), P99us: median(p99), Rounds: value,
			ToBest: median(best), ToNydusd: median(nydusd),
		})
	}
	r.Rows = append(r.Rows, out)
}

func (r *report) writeJSON(name string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(b, '\n'), 0o644)
}

func (r *report) print(w io.Writer) {
	if r.Busy > float64(r.CPUs)/2 {
		fmt.Fprintf(w, "the machine was busy before the run (load average %.1f): trust the ratios only, and not far\n", r.Busy)
	}
	if len(r.Servers) > 0 {
		fmt.Fprintf(w, "%d entries, image made by %s; %d rounds of %s; %d CPUs shared with the load generator; medians\n\n",
			r.Entries, r.Maker, r.Rounds, r.Duration, r.CPUs)
	}
	r.printRows(w)
	r.printMemory(w)
	r.printDensity(w)
	r.printAims(w)
	r.printBuilds(w)
	r.printHuge(w)
	if len(r.Missing) > 0 {
		fmt.Fprintf(w, "\n%s\n(make bench-peers installs them)\n", strings.Join(r.Missing, "\n"))
	}
}

func (r *report) printMemory(w io.Writer) {
	if len(r.Rows)+len(r.Density) == 0 {
		return
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "most memory, MB\tRSS\tPSS\tanonymous\tpeak RSS with guest memory\trestarts\texec to socket, ms (median, worst)")
	for _, s := range r.Servers {
		m := s.Memory
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%d\t%.1f, %.1f\n", s.Name, mega(m.RSS), mega(m.PSS), mega(m.Anonymous), mega(m.PeakRSS), s.Restarts,
			s.ListenMS, s.ListenWorstMS)
	}
	tw.Flush()
}

func (r *report) printRows(w io.Writer) {
	if len(r.Rows) == 0 {
		return
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	var head strings.Builder
	for _, s := range r.Servers {
		fmt.Fprintf(&head, "\t%s (p50/p99 us)", s.Name)
	}
	ours := r.Servers[0]
	if !ours.Peer {
		head.WriteString("\tto best peer\tto nydusd")
	}
	fmt.Fprintf(tw, "warm%s\n", head.String())
	for _, row := range r.Rows {
		fmt.Fprintf(tw, "%s", row.Name)
		for _, c := range row.Cells {
			format := "\t%.0f %s (%.1f/%.1f)"
			if row.Unit == "GB/s" {
				format = "\t%.2f %s (%.1f/%.1f)"
			}
			fmt.Fprintf(tw, format, c.Value, row.Unit, c.P50us, c.P99us)
		}
		if !ours.Peer {
			fmt.Fprintf(tw, "\t%s\t%s", ratio(row.Cells[0].ToBest), ratio(row.Cells[0].ToNydusd))
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
	fmt.Fprintln(w)
}

func (r *report) printDensity(w io.Writer) {
	if len(r.Density) == 0 {
		return
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "\ndensity\tdaemons\tRSS each, MB\tPSS each, MB\tanonymous each, MB\texec to socket, ms (median, worst)\tCPU while idle, ms/s all together")
	for _, d := range r.Density {
		fmt.Fprintf(tw, "%s\t%d\t%s\t%s\t%s\t%.1f, %.1f\t%.1f\n", d.Server, d.Daemons, mega(d.RSS), mega(d.PSS), mega(d.Anonymous), d.ListenMS, d.ListenWorstMS, d.IdleCPU)
	}
	tw.Flush()
}

func ratio(v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", v)
}

func mega(n uint64) string { return fmt.Sprintf("%.1f", float64(n)/1e6) }
