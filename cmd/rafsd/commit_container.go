package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/rafsd/rafsd/rafs/convert"
	"github.com/rafsd/rafsd/rafs/convert/containerd"
)

// ask fills in what containerd knows of a container, which h will hold, and returns the
// image that it was made of unless src names one.
func (f *commitFlags) ask(ctx context.Context, client *containerd.Client, o *convert.CommitOptions, h *heldContainer, src string) (string, error) {
	one, err := client.Container(ctx, f.container)
	if err != nil {
		return "", err
	}
	if o.Upper, err = client.Upper(ctx, one); err != nil {
		return "", err
	}
	h.Container = client.Live(one, f.pause, func() (err error) {
		h.guard, err = startGuard(client, one.ID)
		return err
	})
	o.Container = h
	if src != "" {
		return src, nil
	}
	if src, err = baseImage(ctx, client, one); err != nil {
		return "", fmt.Errorf("container %s: %w; name its RAFS image as SRC", one.ID, err)
	}
	return src, nil
}

// baseImage names the image that a container was made of. Its tag may stand for
// another one by now, so the digest goes with it.
func baseImage(ctx context.Context, client *containerd.Client, one *containerd.Container) (string, error) {
	if one.Image == "" {
		return "", errors.New("it was made of no image")
	}
	ref, err := name.ParseReference(one.Image)
	if err != nil {
		return "", fmt.Errorf("image %q: %w", one.Image, err)
	}
	digest, err := client.ImageDigest(ctx, one.Image)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", one.Image, err)
	}
	return ref.Context().Digest(digest).Name(), nil
}

// heldContainer is a container whose processes stand still while this process reads
// what they have written. As long as they do, no signal that can be caught ends this
// process: it would leave them standing. For the others there is a guard.
type heldContainer struct {
	convert.Container
	guard     *guard // nil as long as it is not paused
	interrupt context.CancelFunc
	signals   chan os.Signal
	done      chan struct{}
}

// lethal are the signals that end a process unless it asks for them. The second of a
// kind does, where the first one is only heard of.
var lethal = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE}

// hold returns a context that ends when a signal comes while a container is paused.
func hold(ctx context.Context) (context.Context, *heldContainer) {
	ctx, cancel := context.WithCancel(ctx)
	return ctx, &heldContainer{interrupt: cancel}
}

func (h *heldContainer) stop() { h.interrupt() }

func (h *heldContainer) Pause(ctx context.Context) error {
	h.signals, h.done = make(chan os.Signal, 1), make(chan struct{})
	for _, s := range lethal {
		if !signal.Ignored(s) { // as nohup has it
			signal.Notify(h.signals, s)
		}
	}
	go func() {
		defer close(h.done)
		for s := range h.signals {
			if s != syscall.SIGPIPE { // somebody does not want to hear of it any more
				h.interrupt()
			}
		}
	}()
	return h.Container.Pause(ctx)
}

func (h *heldContainer) Resume() error {
	err := h.Container.Resume()
	if h.guard != nil {
		h.guard.end(err == nil)
		h.guard = nil
	}
	if h.signals != nil {
		signal.Stop(h.signals)
		close(h.signals)
		<-h.done
		h.signals = nil
	}
	return err
}
