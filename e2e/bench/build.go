package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// builder is a program with nydus-image's grammar.
type builder struct {
	name string
	argv []string // program and what comes before "create"
}

// buildRow is one way to make an image.
type buildRow struct {
	name, kind string
	packed     bool    // the source is the tree as tar.gz
	cores      int     // that the program may use
	aim        float64 // of nydus-image's speed
}

var buildRows = []buildRow{
	{"folder, one core", "dir-rafs", false, 1, 1},
	{"tar.gz, one core", "targz-rafs", true, 1, 1},
	{"folder, two cores", "dir-rafs", false, 2, 1.5},
	{"tar.gz, two cores", "targz-rafs", true, 2, 1.5},
}

// built is what one run of a builder took.
type built struct {
	Wall  float64 `json:"wall_s"`
	CPU   float64 `json:"cpu_s"`
	RSS   uint64  `json:"peak_rss_bytes"`
	Bytes uint64  `json:"output_bytes"` // bootstrap and blob
}

// buildReport is one row: medians over the rounds.
type buildReport struct {
	Name     string  `json:"name"`
	Ours     built   `json:"ours"`
	Peer     *built  `json:"peer,omitempty"`
	Speed    float64 `json:"speed_to_peer,omitempty"` // median of the rounds' ratios
	Aim      float64 `json:"aim,omitempty"`
	Size     float64 `json:"size_to_peer,omitempty"`
	Unpacked uint64  `json:"input_bytes"`
}

// findBuilders returns our own program first, then nydus-image if it is there.
func findBuilders(o *options) []builder {
	var out []builder
	if p := find(ownPrograms(o)); p != "" {
		out = append(out, builder{"rafsd image", []string{p, "image"}})
	}
	if p := find(nydusImagePaths(o)); p != "" {
		out = append(out, builder{"nydus-image", []string{p}})
	}
	return out
}

// build measures how images are made, in rounds, each beginning with another
// program. What is read is in the page cache: a round before the first is not
// counted.
func build(ctx context.Context, o *options, img *image, work string, rep *report) error {
	builders := findBuilders(o)
	if len(builders) == 0 {
		return errors.New("no program that makes images: make build")
	}
	packed := filepath.Join(work, "tree.tar.gz")
	if err := command(ctx, "tar", "-C", img.tree, "--numeric-owner", "-czf", packed, "."); err != nil {
		return err
	}
	total, err := treeBytes(img.tree)
	if err != nil {
		return err
	}
	for _, row := range buildRows {
		if !o.rows.MatchString(row.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "make an image of a %s\n", row.name)
		source := img.tree
		if row.packed {
			source = packed
		}
		samples := make([][]built, len(builders))
		for round := -1; round < o.rounds; round++ {
			for i := range builders {
				n := (i + max(round, 0)) % len(builders)
				b, err := builders[n].run(ctx, row, source, filepath.Join(work, "built"))
				if err != nil {
					return fmt.Errorf("%s: %s: %w", builders[n].name, row.name, err)
				}
				if round >= 0 {
					samples[n] = append(samples[n], b)
				}
			}
		}
		rep.addBuild(row, total, samples)
	}
	return nil
}

// run makes one image and removes it.
func (b builder) run(ctx context.Context, row buildRow, source, out string) (built, error) {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return built{}, err
	}
	cpus := []string{"0", "0,1"}[row.cores-1]
	argv := append([]string{"taskset", "-c", cpus}, b.argv...)
	argv = append(argv, "create", "--type", row.kind, "--compressor", "zstd", "--fs-version", "6", "--log-level", "error",
		"--bootstrap", filepath.Join(out, "image.boot"), "--blob-dir", out, source)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	began := time.Now()
	text, err := cmd.CombinedOutput()
	wall := time.Since(began)
	if err != nil {
		return built{}, fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, text)
	}
	size, err := treeBytes(out)
	if err != nil {
		return built{}, err
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return built{
		Wall: wall.Seconds(), CPU: (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds(),
		RSS: uint64(usage.Maxrss) << 10, Bytes: size,
	}, os.RemoveAll(out)
}

// treeBytes adds up the sizes of the regular files in a folder.
func treeBytes(dir string) (total uint64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			total += uint64(fi.Size())
		}
		return err
	})
	return total, err
}

func medianBuilt(all []built) built {
	var wall, cpu, rss []float64
	for _, b := range all {
		wall, cpu, rss = append(wall, b.Wall), append(cpu, b.CPU), append(rss, float64(b.RSS))
	}
	return built{Wall: median(wall), CPU: median(cpu), RSS: uint64(median(rss)), Bytes: all[0].Bytes}
}

// addBuild takes the ratios within a round, where the machine was alike.
func (r *report) addBuild(row buildRow, total uint64, samples [][]built) {
	out := buildReport{Name: row.name, Ours: medianBuilt(samples[0]), Unpacked: total}
	if len(samples) > 1 {
		peer := medianBuilt(samples[1])
		var speed []float64
		for i := range samples[0] {
			speed = append(speed, samples[1][i].Wall/samples[0][i].Wall)
		}
		out.Peer, out.Speed, out.Aim = &peer, median(speed), row.aim
		out.Size = float64(out.Ours.Bytes) / float64(peer.Bytes)
	}
	r.Builds = append(r.Builds, out)
}

func (r *report) printBuilds(w io.Writer) {
	if len(r.Builds) == 0 {
		return
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "\nmake an image, v6 zstd\tMB/s\tCPU, s\tpeak RSS, MB\toutput, MB\tnydus-image: MB/s\tCPU, s\tpeak RSS, MB\toutput, MB\tspeed to it\twant\tsize to it")
	for _, b := range r.Builds {
		fmt.Fprintf(tw, "%s\t%s", b.Name, b.Ours.columns(b.Unpacked))
		if b.Peer != nil {
			fmt.Fprintf(tw, "\t%s\t%.2f\t%.1f (%s)\t%.4f", b.Peer.columns(b.Unpacked), b.Speed, b.Aim, met(b.Speed >= b.Aim), b.Size)
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
}

func (b *built) columns(unpacked uint64) string {
	return fmt.Sprintf("%.0f\t%.2f\t%s\t%s", float64(unpacked)/1e6/b.Wall, b.CPU, mega(b.RSS), mega(b.Bytes))
}
