// Bench compares vhost-user-fs daemons, and programs that make images, with each other
// on one machine, in one run.
//
// It takes an image of a Debian-like tree, starts every daemon that it finds, this
// project's and those of others, makes each read every byte of the tree and
// compares what came with the tree, and then lets one neutral front-end put the
// same load on all of them, in rounds, one after the other, since the machine is
// noisy: what counts are the ratios within a round. It prints a table and, if
// asked, JSON. Then it lets this project and nydus-image make images of the same tree,
// and compares speed, memory and size.
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
	"slices"
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
	huge        hugeLayer
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == launchVerb {
		if err := launch(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
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
	fs.StringVar(&o.nydusImage, "nydus-image", "", "program that makes the image and is compared with ours; searched for when empty; ours makes it when \"none\" or not found")
	fs.StringVar(&o.modes, "mode", "rows,density,build", "what to do: rows, density (both after a check of the data), build, huge, separated by commas")
	fs.IntVar(&o.rounds, "rounds", 5, "rounds of every row")
	fs.DurationVar(&o.duration, "time", 500*time.Millisecond, "time of one row of one daemon in one round")
	rows := fs.String("rows", "", "only the rows whose name matches this expression")
	layout := fs.String("layout", "pages", "data pages of a read: pages (a descriptor each), scattered (and no two neighbours), folio (one descriptor)")
	fs.BoolVar(&o.noEventIdx, "no-event-idx", false, "negotiate no EVENT_IDX")
	fs.IntVar(&o.daemons, "daemons", 40, "daemons of the density mode")
	fs.IntVar(&o.huge.entries, "huge-entries", hugeEntries, "entries of the layer of the huge mode")
	fs.Int64Var(&o.huge.bytes, "huge-bytes", hugeBytes, "bytes of its files")
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
	for m := range strings.SplitSeq(o.modes, ",") {
		if !slices.Contains(modes, m) {
			return nil, fmt.Errorf("mode %q: want some of %s", m, strings.Join(modes, ", "))
		}
	}
	if o.rounds < 1 || o.huge.entries < 1 || o.huge.bytes < 0 {
		return nil, errors.New("want at least one round, and a layer with at least one entry")
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

// modes are what -mode may name.
var modes = []string{"rows", "density", "build", "huge"}

func run(ctx context.Context, args []string) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
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
	rep := newReport(o)
	if err := o.measure(ctx, work, rep); err != nil {
		return err
	}
	rep.print(os.Stdout)
	if o.json != "" {
		return rep.writeJSON(o.json)
	}
	return nil
}

// measure runs the modes that were asked for.
func (o *options) measure(ctx context.Context, work string, rep *report) error {
	if o.mode("rows") || o.mode("density") || o.mode("build") {
		tree, err := prepareTree(ctx, o)
		if err != nil {
			return err
		}
		rep.Tree = tree
		if o.mode("rows") || o.mode("density") {
			if err := serve(ctx, o, tree, work, rep); err != nil {
				return err
			}
		}
		if o.mode("build") {
			if err := build(ctx, o, tree, work, rep); err != nil {
				return err
			}
		}
	}
	if o.mode("huge") {
		return huge(ctx, o, work, rep)
	}
	return nil
}

// serve compares the daemons.
func serve(ctx context.Context, o *options, tree, work string, rep *report) error {
	img, err := prepareImage(ctx, o, tree)
	if err != nil {
		return err
	}
	found := findServers(o, rep)
	if len(found) == 0 {
		return errors.New("no daemon found: name one, make build, or make bench-peers")
	}
	rep.addServers(img, found)
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
