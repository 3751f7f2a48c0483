package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// What our own daemon is to keep to, whatever the machine, in the units of the report.
const (
	aimListenMS = 50
	aimRSS      = 30e6 // serving this image, after all rows
	aimPSS      = 15e6 // each, of many on one image
	aimToNydusd = 0.8  // of nydusd's figure, at every row
)

// printAims sets our own figures beside what they are to be.
func (r *report) printAims(w io.Writer) {
	if len(r.Rows)+len(r.Density) == 0 || len(r.Servers) == 0 || r.Servers[0].Peer {
		return
	}
	ours := r.Servers[0]
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(tw, "\naims of %s\tis\twant\t\n", ours.Name)
	fmt.Fprintf(tw, "exec to socket, median\t%.1f ms\tat most %d ms\t%s\n", ours.ListenMS, aimListenMS, met(ours.ListenMS <= aimListenMS))
	fmt.Fprintf(tw, "RSS while serving, most\t%s MB\tat most %s MB\t%s\n", mega(ours.Memory.RSS), mega(aimRSS), met(ours.Memory.RSS <= aimRSS))
	if i := slices.IndexFunc(r.Density, func(d densityReport) bool { return d.Server == ours.Name }); i >= 0 {
		d := r.Density[i]
		fmt.Fprintf(tw, "PSS each, %d daemons\t%s MB\tat most %s MB\t%s\n", d.Daemons, mega(d.PSS), mega(aimPSS), met(d.PSS <= aimPSS))
	}
	if name, lowest := r.lowestRow(); name != "" {
		fmt.Fprintf(tw, "lowest row to nydusd, %s\t%s\tat least %s\t%s\n", name, ratio(lowest), ratio(aimToNydusd), met(lowest >= aimToNydusd))
	}
	tw.Flush()
}

// lowestRow is the row where we do worst beside nydusd; no name if it did not run.
func (r *report) lowestRow() (name string, lowest float64) {
	for _, row := range r.Rows {
		if v := row.Cells[0].ToNydusd; v > 0 && (name == "" || v < lowest) {
			name, lowest = row.Name, v
		}
	}
	return name, lowest
}

func met(ok bool) string {
	if ok {
		return "met"
	}
	return "missed"
}
