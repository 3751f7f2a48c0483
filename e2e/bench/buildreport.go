package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// buildReport is one row of the mode "build".
type buildReport struct {
	Name    string        `json:"name"`
	Input   uint64        `json:"input_bytes"` // of the files, unpacked
	Makers  []makerReport `json:"makers"`
	ToPeer  *buildRatios  `json:"to_nydus_image,omitempty"`
	SpeedAt float64       `json:"speed_aim"`
}

// makerReport is one program in one row.
type makerReport struct {
	Program string  `json:"program"`
	Wall    figure  `json:"wall_s"`
	CPU     figure  `json:"cpu_s"`
	RSS     uint64  `json:"peak_rss_bytes"` // the most of all rounds
	Bytes   uint64  `json:"output_bytes"`
	Rounds  []built `json:"rounds"`
}

// figure is what the rounds agree about. The machine only ever adds to a time, so the
// least is closest to what the program needs.
type figure struct {
	Median float64 `json:"median"`
	Least  float64 `json:"least"`
}

func figureOf(v []float64) figure { return figure{median(v), slices.Min(v)} }

// buildRatios are our figures beside nydus-image's; above 1 we are faster, take more
// processor time, more memory, more room.
type buildRatios struct {
	Speed spread  `json:"speed"`
	CPU   spread  `json:"cpu"`
	RSS   float64 `json:"peak_rss"`
	Size  float64 `json:"output"`
}

// spread is a ratio: of the rounds, within each of which the machine was alike, and of
// each program's best round.
type spread struct {
	Median float64 `json:"median"`
	Least  float64 `json:"least"`
	OfBest float64 `json:"of_best_rounds"`
}

func spreadOf(above, below []float64) spread {
	ratios := make([]float64, len(above))
	for i := range above {
		ratios[i] = above[i] / below[i]
	}
	f := figureOf(ratios)
	return spread{f.Median, f.Least, slices.Min(above) / slices.Min(below)}
}

func (r *report) addBuild(row buildRow, total uint64, builders []builder, samples [][]built) {
	out := buildReport{Name: row.name, Input: total, SpeedAt: row.aim}
	wall, cpu := make([][]float64, len(samples)), make([][]float64, len(samples))
	for i, rounds := range samples {
		m := makerReport{Program: builders[i].name, Rounds: rounds}
		for _, b := range rounds {
			wall[i], cpu[i] = append(wall[i], b.Wall), append(cpu[i], b.CPU)
			m.RSS, m.Bytes = max(m.RSS, b.RSS), b.Bytes
		}
		m.Wall, m.CPU = figureOf(wall[i]), figureOf(cpu[i])
		out.Makers = append(out.Makers, m)
	}
	if len(samples) > 1 {
		ours, peer := out.Makers[0], out.Makers[1]
		out.ToPeer = &buildRatios{
			Speed: spreadOf(wall[1], wall[0]), CPU: spreadOf(cpu[0], cpu[1]),
			RSS: float64(ours.RSS) / float64(peer.RSS), Size: float64(ours.Bytes) / float64(peer.Bytes),
		}
	}
	r.Builds = append(r.Builds, out)
}

func (r *report) printBuilds(w io.Writer) {
	if len(r.Builds) == 0 {
		return
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(tw, "\nmake an image, v6 zstd, of %s MB in files; %d rounds\n", mega(r.Builds[0].Input), r.Rounds)
	fmt.Fprintln(tw, "\t\tMB/s, median (best)\tCPU, s, median (least)\tpeak RSS, MB, most\toutput, MB")
	for _, b := range r.Builds {
		for _, m := range b.Makers {
			fmt.Fprintf(tw, "%s\t%s\t%s\n", b.Name, m.Program, m.columns(b.Input))
		}
	}
	if r.Builds[0].ToPeer != nil {
		fmt.Fprintf(tw, "\n%s to %s\tspeed, median (least)\tspeed, best rounds\twant\tCPU, median (least)\tpeak RSS\toutput\twant\n", ownBuilder, peerBuilder)
	}
	for _, b := range r.Builds {
		if p := b.ToPeer; p != nil {
			fmt.Fprintf(tw, "%s\t%.2f (%.2f)\t%.2f\tat least %.1f: %s\t%.2f (%.2f)\t%.2f\t%.4f\tat most 1: %s\n", b.Name,
				p.Speed.Median, p.Speed.Least, p.Speed.OfBest, b.SpeedAt, met(p.Speed.Median >= b.SpeedAt),
				p.CPU.Median, p.CPU.Least, p.RSS, p.Size, met(p.Size <= 1))
		}
	}
	tw.Flush()
}

func (m *makerReport) columns(input uint64) string {
	rate := func(s float64) float64 { return float64(input) / 1e6 / s }
	return fmt.Sprintf("%.1f (%.1f)\t%.2f (%.2f)\t%s\t%s", rate(m.Wall.Median), rate(m.Wall.Least), m.CPU.Median, m.CPU.Least, mega(m.RSS), mega(m.Bytes))
}
