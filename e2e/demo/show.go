package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rafsd/rafsd/e2e/process"
	"github.com/rafsd/rafsd/e2e/registry"
	"github.com/rafsd/rafsd/e2e/vm"
	"github.com/rafsd/rafsd/guest/report"
)

// stage is what the show needs.
type stage struct {
	options
	binary, scratch string
	boot            vm.Files
	registry        *registry.Registry
	image           published
}

const tag = "image"

// step prints what is being done; the returned function prints what came of it.
func step(what string) func(format string, args ...any) {
	began := time.Now()
	fmt.Printf("%-18s", what)
	return func(format string, args ...any) {
		fmt.Printf("%s  (%.1f s)\n", fmt.Sprintf(format, args...), time.Since(began).Seconds())
	}
}

// show serves the image with an empty cache, boots a machine on it, and prints the
// machine's events as they come.
func show(ctx context.Context, s *stage) (err error) {
	s.registry.Reset()
	socket := filepath.Join(s.scratch, "vm.sock")
	done := step("rafsd virtiofs")
	daemon, err := process.Serve(ctx, socket, filepath.Join(s.scratch, "rafsd.log"), s.binary,
		"virtiofs", "--sock", socket, "--cache-dir", filepath.Join(s.scratch, "cache"), s.image.reference)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, daemon.Stop(syscall.SIGTERM, 5*time.Second))
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, daemon.Describe())
		}
	}()
	done("listens; the cache is empty")
	command := report.Command{
		Args: s.image.arguments(s.options), Env: s.image.config.Env, Dir: s.image.config.WorkingDir, User: s.image.config.User,
	}
	if len(command.Args) == 0 {
		return errors.New("the image says nothing of what to run: give it RUN=\"...\"")
	}
	v, err := vm.Start(ctx, vm.Options{
		Boot: s.boot, FS: []vm.FS{{Socket: socket, Tag: tag}}, Memory: s.memory, CPUs: 2, Life: 10 * time.Minute,
		Config: report.Config{Tag: tag, Run: &command},
	})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, v.Describe())
		}
		err = errors.Join(err, v.Close())
	}()
	if err := timeline(ctx, v, command); err != nil {
		return err
	}
	if err := v.Wait(ctx); err != nil {
		return err
	}
	s.balance()
	return nil
}

// timeline prints one line an event until the command has ended.
func timeline(ctx context.Context, v *vm.VM, command report.Command) error {
	fmt.Printf("\n   0.00 s  machine is switched on\n")
	mark := func(at time.Duration, format string, args ...any) {
		fmt.Printf("%7.2f s  %s\n", at.Seconds(), fmt.Sprintf(format, args...))
	}
	output := false
	for next := 0; ; {
		r, after, err := v.Await(ctx, next, func(vm.Record) bool { return true })
		if err != nil {
			return err
		}
		next = after
		switch r.Type {
		case report.Boot:
			mark(r.At, "kernel is up, init runs")
		case report.Mounted:
			mark(r.At, "image is mounted")
		case report.Started:
			mark(r.At, "starts %s", brief(command.Args))
		case report.Output:
			if !output {
				mark(r.At, "first byte of output")
			}
			output = true
			for line := range strings.Lines(string(r.Data)) {
				fmt.Printf("           | %s\n", strings.TrimRight(line, "\n"))
			}
		case report.Exit:
			mark(r.At, "done, %s", ending(r))
			return nil
		case report.Failed:
			return fmt.Errorf("guest: %s", r.Error)
		}
	}
}

func ending(r vm.Record) string {
	if r.Signal != "" {
		return "killed by " + r.Signal
	}
	return fmt.Sprintf("exit status %d", r.Code)
}

// brief shows a command on one short line.
func brief(args []string) string {
	line := strings.Join(strings.Fields(strings.Join(args, " ")), " ")
	const limit = 50
	if len(line) > limit {
		line = line[:limit] + "..."
	}
	return line
}

// balance sets what crossed the wire beside what the image is.
func (s *stage) balance() {
	chunks := s.registry.Blobs(s.image.Chunks...)
	metadata := s.registry.Blobs(s.image.Metadata)
	fmt.Printf("\n%-18s%s in %d inodes; %s of chunks and %s of metadata in the registry\n", "image",
		bytesText(int64(s.image.files)), s.image.inodes, bytesText(s.image.ChunkBytes), bytesText(s.image.MetadataBytes))
	fmt.Printf("%-18s%s of chunks in %d requests, %.1f %% of them all, each verified; %s of metadata\n", "over the wire",
		bytesText(chunks.Bytes), chunks.Requests, 100*float64(chunks.Bytes)/float64(s.image.ChunkBytes), bytesText(metadata.Bytes))
	fmt.Printf("%-18s%s of chunks that the program did not need\n", "not fetched", bytesText(s.image.ChunkBytes-chunks.Bytes))
}

func bytesText(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.2f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%d B", n)
}
