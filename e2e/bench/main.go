// Bench compares vhost-user-fs daemons with each other on one machine, in one run.
//
// It takes an image of a Debian-like tree, starts every daemon that it finds, this
// project's and those of others, makes each read every byte of the tree and
// compares what came with the tree, and then lets one neutral front-end put the
// same load on all of them, in rounds, one after the other, since the machine is
// noisy: what counts are the ratios within a round. It prints a table and, if
// asked, JSON.
//
// It is a program and not a Go benchmark because a row is a comparison of several
// processes, which testing.B cannot express.
//
// It trusts nobody's answers: a daemon that serves a wrong byte, a wrong mode or a
// malformed reply ends the run with an error. It never touches what it did not
// make, except for the cache folder it was given.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
)

// options are the command line.
type options struct {
	cache, tree string
	programs    map[string]*string // by daemon's name
	nydusImage  string
	modes       string
	rounds      int
	duration    time.Duration
	rows        *regexp.Regexp
	layout      vhostusertest.DataLayout
	noEventIdx  bool
	daemons     int
	json        string
	keep        bool
	guestMemory uint64
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (*options, error) {
	o := &options{programs: map[string]*string{}, guestMemory: 64 << 20}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.StringVar(&o.cache, "cache", defaultCache(), "folder for the tree and its image, kept between runs")
	fs.StringVar(&o.tree, "tree", "", "serve this folder instead of a Debian made by mmdebstrap")
	for _, s := range servers {
		o.programs[s.name] = fs.String(s.name, "", s.name+"'s program; searched for when empty, left out when \"none\"")
	}
	fs.StringVar(&o.nydusImage, "nydus-image", "", "program that makes the image; searched for when empty; rafsd convert makes it when \"none\" or not found")
	fs.StringVar(&o.modes, "mode", "rows,density", "what to do: rows, density (both after a check of the data), build, huge, separated by commas")
	fs.IntVar(&o.rounds, "rounds", 5, "rounds of every row")
	fs.DurationVar(&o.duration, "time", 500*time.Millisecond, "time of one row of one daemon in one round")
	rows := fs.String("rows", "", "only the rows whose name matches this expression")
	layout := fs.String("layout", "pages", "data pages of a read: pages (a descriptor each), scattered (and no two neighbours), folio (one descriptor)")
	fs.BoolVar(&o.noEventIdx, "no-event-idx", false, "negotiate no EVENT_IDX")
	fs.IntVar(&o.daemons, "daemons", 40, "daemons of the density mode")
	fs.StringVar(&o.json, "json", "", "write the report to this file, too")
	fs.BoolVar(&o.keep, "keep", false, "keep sockets, caches and logs of the run")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	var err error
	if o.rows, err = regexp.Compile(*rows); err != nil {
		return nil, err
	}
	layouts := map[string]vhostusertest.DataLayout{
		"pages": vhostusertest.Pages, "scattered": vhostusertest.Scattered, "folio": vhostusertest.Folio,
	}
	var known bool
	if o.layout, known = layouts[*layout]; !known {
		return nil, fmt.Errorf("layout %q: want pages, scattered or folio", *layout)
	}
	return o, nil
}

func defaultCache() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "rafsd-bench")
}

func (o *options) mode(name string) bool {
	for m := range strings.SplitSeq(o.modes, ",") {
		if m == name {
			return true
		}
	}
	return false
}

func run(ctx context.Context, args []string) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	img, err := prepare(ctx, o)
	if err != nil {
		return err
	}
	found := findServers(o)
	if len(found) == 0 {
		return errors.New("no daemon found: name one, make build, or make bench-peers")
	}
	work, err := os.MkdirTemp("", "rafsd-bench-")
	if err != nil {
		return err
	}
	defer func() {
		if o.keep {
			fmt.Fprintln(os.Stderr, "kept", work)
			return
		}
		err = errors.Join(err, os.RemoveAll(work))
	}()
	rep := newReport(o, img, found)
	if err := serve(ctx, o, img, work, found, rep); err != nil {
		return err
	}
	if o.mode("build") {
		if err := build(ctx, o, img, work, rep); err != nil {
			return err
		}
	}
	if o.mode("huge") {
		if err := huge(ctx, o, work, rep); err != nil {
			return err
		}
	}
	rep.print(os.Stdout)
	if o.json != "" {
		return rep.writeJSON(o.json)
	}
	return nil
}

// serve compares the daemons.
func serve(ctx context.Context, o *options, img *image, work string, found []server, rep *report) error {
	if !o.mode("rows") && !o.mode("density") {
		return nil
	}
	if err := starts(ctx, img, work, found, rep); err != nil {
		return err
	}
	if err := compare(ctx, o, img, work, found, rep); err != nil {
		return err
	}
	if o.mode("density") {
		return density(ctx, o, img, work, found, rep)
	}
	return nil
}
