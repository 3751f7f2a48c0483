package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rafsd/rafsd/daemon"
	"github.com/rafsd/rafsd/daemon/config"
)

// serveFlags are the flags of the verbs that serve. Those that nydusd takes
// before or after its subcommand are registered with the root.
type serveFlags struct {
	apisock, config, id, supervisor string
	upgrade                         bool
	rlimitNoFile                    uint64

	sock, bootstrap, localfsDir, prefetchFiles, mountpoint string
	sharedDir, dedupDB, cacheDir, tag, metrics             string
	fd, queues                                             int
	hybrid, plainHTTP                                      bool
	caFiles                                                []string
}

func (s *serveFlags) registerGlobal(fs *pflag.FlagSet) {
	fs.StringVarP(&s.apisock, "apisock", "A", "", "accepted for nydusd's callers; there is no API yet, which is logged")
	fs.StringVarP(&s.config, "config", "C", "", "nydusd configuration, version 1 (JSON) or 2 (JSON, TOML)")
	fs.StringVar(&s.id, "id", "", "name of this instance in logs and metrics")
	fs.Uint64Var(&s.rlimitNoFile, "rlimit-nofile", 0, "open files to ask the system for; 0 leaves the limit as it is")
	fs.StringVar(&s.supervisor, "supervisor", "", "accepted for nydusd's callers, without effect")
	fs.BoolVar(&s.upgrade, "upgrade", false, "not supported by this version")
	for _, name := range []string{"apisock", "config", "id", "rlimit-nofile", "supervisor", "upgrade"} {
		// The flag was registered three lines above.
		_ = fs.SetAnnotation(name, serveOnly, nil)
	}
	_ = fs.MarkHidden("supervisor")
	_ = fs.MarkHidden("upgrade")
}

func (s *serveFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&s.sock, "sock", "", "vhost-user socket to listen on")
	fs.IntVar(&s.fd, "fd", -1, "use this descriptor, a listening unix socket, instead of --sock")
	fs.StringVarP(&s.bootstrap, "bootstrap", "B", "", "metadata of the image: a file, or a blob that has it inside, by its file or as sha256:ID")
	fs.StringVarP(&s.localfsDir, "localfs-dir", "D", "", "folder with the image's blobs; also of the cache, unless --cache-dir says otherwise")
	fs.StringVar(&s.cacheDir, "cache-dir", "", "folder of the chunk cache; without one chunks are kept in memory")
	fs.StringVar(&s.prefetchFiles, "prefetch-files", "", "file with paths in the image, one a line, to fetch ahead; - is stdin")
	fs.StringVarP(&s.mountpoint, "virtual-mountpoint", "m", "/", "where the image is mounted inside the device; / only")
	fs.StringVar(&s.tag, "tag", "", "virtio-fs tag, for VMMs that ask the device for it")
	fs.IntVar(&s.queues, "num-queues", 8, "request queues that the device offers, 1 to 64")
	fs.StringVar(&s.metrics, "metrics", "", "serve Prometheus metrics: unix:///PATH or 127.0.0.1:PORT")
	fs.BoolVar(&s.plainHTTP, "plain-http", false, "REFERENCE: talk http, not https, to the registry")
	fs.StringArrayVar(&s.caFiles, "ca", nil, "REFERENCE: further certificate authorities, a PEM file; may be repeated")
	fs.StringVarP(&s.sharedDir, "shared-dir", "s", "", "not supported by this version")
	fs.StringVar(&s.dedupDB, "dedup-db", "", "accepted for nydusd's callers, without effect")
	fs.BoolVar(&s.hybrid, "hybrid-mode", false, "accepted for nydusd's callers, without effect")
	for _, name := range []string{"shared-dir", "dedup-db", "hybrid-mode"} {
		_ = fs.MarkHidden(name)
	}
}

const virtiofsLong = `Serve an image to one virtual machine over vhost-user-fs.

The image is either a bootstrap file (--bootstrap) with the place of its blobs (--localfs-dir
or --config), or a REFERENCE to an image in a registry, of which manifest and bootstrap
are fetched and verified too. Flags and configuration files are nydusd's.

The command runs until it gets SIGTERM or SIGINT, which end it at once. Every chunk is
verified before a guest sees it; nothing turns that off.`

const virtiofsExample = `  # from a registry, with a cache on disk
  rafsd virtiofs --sock /run/vm.sock --cache-dir /var/cache/rafsd registry.example.com/debian:12-rafs

  # as nydusd is called: bootstrap and folder of blobs
  rafsd virtiofs --sock /run/vm.sock --bootstrap image.boot --localfs-dir /var/lib/blobs

  # bootstrap and configuration file, with metrics
  rafsd virtiofs --sock /run/vm.sock -B image.boot -C registry.toml --metrics unix:///run/rafsd.metrics

  # then, for QEMU
  qemu-system-x86_64 ... -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem \
    -chardev socket,id=fs,path=/run/vm.sock -device vhost-user-fs-pci,chardev=fs,tag=root,queue-size=1024`

func (a *app) virtiofs() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "virtiofs (--sock PATH | --fd N) (REFERENCE | --bootstrap FILE) [flags]",
		Short:   "Serve an image to a virtual machine",
		Long:    virtiofsLong,
		Example: virtiofsExample,
		Args:    args(cobra.MaximumNArgs(1), "at most one REFERENCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runVirtiofs(cmd, args)
		},
	}
	a.serve.register(cmd.Flags())
	return cmd
}

func (a *app) runVirtiofs(cmd *cobra.Command, args []string) error {
	s := &a.serve
	if err := s.check(args); err != nil {
		return &usageError{err}
	}
	options := daemon.Options{
		Socket: s.sock, Bootstrap: s.bootstrap, Tag: s.tag, Queues: s.queues, Version: buildInfo().Version,
	}
	var reference *imageReference
	if len(args) == 1 {
		var err error
		if reference, err = parseReference(args[0], s.plainHTTP); err != nil {
			return &usageError{err}
		}
		options.Reference = reference.name
	}
	cfg, notes, err := s.load(reference, a.getenv)
	if err != nil {
		return err
	}
	options.Config, options.CacheDir, options.Metrics = cfg, cfg.Cache.WorkDir, cfg.Rafsd.Metrics
	if options.PrefetchFiles, err = readPrefetchFiles(s.prefetchFiles); err != nil {
		return err
	}
	log, closeLog, err := a.log.open(a.stderr)
	if err != nil {
		return err
	}
	defer closeLog()
	if cfg.ID != "" {
		log = log.With("sandbox", cfg.ID)
	}
	options.Log = log
	if options.Listener, err = s.listener(); err != nil {
		return err
	}
	// A log whose reader has gone must not end the daemon.
	signal.Ignore(syscall.SIGPIPE)
	s.say(log, notes)
	raiseNoFile(s.rlimitNoFile, log)
	trimHeap(a.getenv)
	err = daemon.Run(cmd.Context(), options)
	if errors.Is(err, context.Canceled) && cmd.Context().Err() != nil {
		return nil
	}
	return err
}

// check finds contradictions between flags that cobra does not know.
func (s *serveFlags) check(args []string) error {
	switch {
	case (s.sock == "") == (s.fd < 0):
		return errors.New("want one of --sock PATH and --fd N, where the VMM connects")
	case s.localfsDir != "" && s.config != "":
		return errors.New("want --localfs-dir or --config, not both: each says where the blobs are")
	case s.sharedDir != "":
		return errors.New("--shared-dir: shared folders are not supported by this version")
	case s.upgrade:
		return errors.New("--upgrade is not supported by this version")
	case s.mountpoint != "/":
		return fmt.Errorf("--virtual-mountpoint %s: want /, this version serves one image at the root", s.mountpoint)
	case len(args) == 1 && s.bootstrap != "":
		return errors.New("want a REFERENCE or --bootstrap, not both")
	case len(args) == 0 && s.bootstrap == "":
		return errors.New("want an image: a REFERENCE, or --bootstrap FILE")
	case len(args) == 1 && s.localfsDir != "":
		return errors.New("--localfs-dir goes with --bootstrap; a REFERENCE's blobs come from its registry")
	case len(args) == 0 && s.localfsDir == "" && s.config == "":
		return errors.New("want --localfs-dir DIR or --config FILE, where the blobs of the bootstrap are")
	case s.queues < 1 || s.queues > 64:
		return fmt.Errorf("--num-queues %d: want 1 to 64", s.queues)
	}
	return nil
}

// load makes the configuration of flags, file and environment.
func (s *serveFlags) load(ref *imageReference, getenv func(string) string) (*config.Config, []config.Note, error) {
	var options []config.Option
	if s.localfsDir != "" {
		options = append(options, config.WithLocalFS(s.localfsDir))
	}
	if ref != nil {
		options = append(options, config.WithRegistry(ref.host, ref.repo), s.withTransport(ref))
	}
	options = append(options, config.WithID(s.id), config.WithCacheDir(s.cacheDir), config.WithEnv(getenv),
		func(c *config.Config) {
			if s.metrics != "" {
				c.Rafsd.Metrics = s.metrics
			}
		})
	if s.config != "" {
		c, notes, err := config.Load(s.config, options...)
		if err != nil {
			return nil, nil, &usageError{err}
		}
		return c, notes, nil
	}
	c, err := config.New(options...)
	if err != nil {
		return nil, nil, &usageError{err}
	}
	return c, nil, nil
}

// withTransport applies --plain-http and --ca. A registry on the loopback
// interface is talked to in plain HTTP unless a configuration says otherwise.
func (s *serveFlags) withTransport(ref *imageReference) config.Option {
	return func(c *config.Config) {
		r := &c.Backend.Registry
		if s.plainHTTP || ref.loopback && s.config == "" {
			r.Scheme = "http"
		}
		r.HTTP.CACertFiles = append(r.HTTP.CACertFiles, s.caFiles...)
	}
}

// listener takes over the descriptor of --fd.
func (s *serveFlags) listener() (net.Listener, error) {
	if s.fd < 0 {
		return nil, nil
	}
	f := os.NewFile(uintptr(s.fd), "listening socket")
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, &usageError{fmt.Errorf("--fd %d: want a listening unix socket: %w", s.fd, err)}
	}
	unix, ok := ln.(*net.UnixListener)
	if !ok {
		ln.Close()
		return nil, &usageError{fmt.Errorf("--fd %d: want a unix socket, got %s", s.fd, ln.Addr().Network())}
	}
	// Its path belongs to whoever bound it.
	unix.SetUnlinkOnClose(false)
	return unix, nil
}

// say logs what the caller should know about its flags and configuration.
func (s *serveFlags) say(log *slog.Logger, notes []config.Note) {
	for _, n := range notes {
		log.Log(context.Background(), n.Level, "configuration: "+n.Text, "key", n.Key, "file", s.config)
	}
	if s.apisock != "" {
		log.Warn("--apisock: this version has no API; nobody will answer on the socket", "path", s.apisock)
	}
	for name, value := range map[string]string{"--supervisor": s.supervisor, "--dedup-db": s.dedupDB} {
		if value != "" {
			log.Warn(name + " has no effect")
		}
	}
}
