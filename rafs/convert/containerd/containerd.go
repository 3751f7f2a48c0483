// Package containerd asks containerd what a commit has to know of a container: the
// image that it was made of, the folder that takes what it writes, and whether it
// runs; and it pauses and resumes it.
//
// It speaks to containerd's socket in calls of one message each way, which take a
// few hundred lines; containerd's own client, or gRPC's, would be part of every
// daemon that serves an image. containerd is root on its machine and is trusted:
// the paths that it names are opened. What a container does is not: paths in a
// container are looked up below its root and through no symbolic link.
//
// It never makes, starts, stops or removes anything. The one thing that it changes
// is whether a container runs, and it undoes that (see [Live.Resume]).
package containerd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// DefaultAddress is where containerd listens unless it is told otherwise.
const DefaultAddress = "/run/containerd/containerd.sock"

// Client asks one containerd about the containers of one namespace. It is safe for
// concurrent use.
type Client struct {
	Address, Namespace string
	http               *http.Client
}

// New makes a client of the containerd at a unix socket; "unix://" may precede its
// path. Nothing is connected before the first call.
func New(address, namespace string) *Client {
	address = strings.TrimPrefix(address, "unix://")
	return &Client{address, namespace, newHTTP(address)}
}

// Close ends the connection.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// Container is what containerd has written down of a container.
type Container struct {
	ID string
	// Image is the name of the image, empty if it was made without one.
	Image string
	// Snapshotter has the root file system, by the name SnapshotKey.
	Snapshotter, SnapshotKey string
}

// Container finds a container by its ID or by the beginning of one. The error, which
// is [ErrNotFound] then, names the containers that there are.
func (c *Client) Container(ctx context.Context, id string) (*Container, error) {
	all, err := c.containers(ctx, c.Namespace)
	if err != nil {
		return nil, err
	}
	var found []*Container
	for _, one := range all {
		if one.ID == id {
			return one, nil
		}
		if strings.HasPrefix(one.ID, id) {
			found = append(found, one)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("container %q: %w; %s", id, ErrNotFound, c.elsewhere(ctx, all, id))
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("container %q: %d begin so, %s; say more of its ID", id, len(found), names(found))
}

// containers lists those of a namespace.
func (c *Client) containers(ctx context.Context, namespace string) ([]*Container, error) {
	there := *c
	there.Namespace = namespace
	answer, err := there.call(ctx, "Containers", "List", nil)
	if err != nil {
		return nil, err
	}
	var all []*Container
	err = each(answer, func(b []byte) error {
		one, err := decodeContainer(b)
		all = append(all, one)
		return err
	})
	slices.SortFunc(all, func(a, b *Container) int { return strings.Compare(a.ID, b.ID) })
	return all, err
}

// elsewhere says what there is instead of a container that there is not.
func (c *Client) elsewhere(ctx context.Context, here []*Container, id string) string {
	if len(here) > 0 {
		return fmt.Sprintf("namespace %s has %s", c.Namespace, names(here))
	}
	text := fmt.Sprintf("namespace %s has no containers", c.Namespace)
	answer, err := c.call(ctx, "Namespaces", "List", nil)
	if err != nil {
		return text // what was asked for is answered
	}
	_ = each(answer, func(b []byte) error {
		namespace, err := decodeName(b)
		if err != nil || namespace == c.Namespace {
			return err
		}
		there, err := c.containers(ctx, namespace)
		if len(there) > 0 {
			text += fmt.Sprintf(", namespace %s has %s", namespace, names(there))
		}
		return err
	})
	return text
}

// names lists some containers for a message.
func names(all []*Container) string {
	const most = 8
	var ids []string
	for _, c := range all[:min(most, len(all))] {
		ids = append(ids, c.ID)
	}
	text := strings.Join(ids, ", ")
	if more := len(all) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// ImageDigest returns the digest that the name of an image stands for here, as
// "sha256:..."; [ErrNotFound] if there is no such image any more.
func (c *Client) ImageDigest(ctx context.Context, name string) (string, error) {
	answer, err := c.call(ctx, "Images", "Get", strings1(name))
	if err != nil {
		return "", err
	}
	var digest string
	err = each(answer, func(b []byte) error {
		digest, err = decodeTarget(b)
		return err
	})
	if err == nil && digest == "" {
		err = fmt.Errorf("image %s: containerd names no digest", name)
	}
	return digest, err
}

// ErrNoUpper means that a container's root has no folder of its own that takes what
// the container writes.
var ErrNoUpper = errors.New("no upper folder")

// Upper returns the folder that takes what a container writes on top of its image:
// the upper folder of the overlay that its snapshotter makes.
func (c *Client) Upper(ctx context.Context, one *Container) (string, error) {
	if one.SnapshotKey == "" {
		return "", fmt.Errorf("container %s: %w: its root is no snapshot", one.ID, ErrNoUpper)
	}
	answer, err := c.call(ctx, "Snapshots", "Mounts", strings1(one.Snapshotter, one.SnapshotKey))
	if err != nil {
		return "", fmt.Errorf("snapshot %s of snapshotter %s: %w", one.SnapshotKey, one.Snapshotter, err)
	}
	var kinds []string
	var upper string
	err = each(answer, func(b []byte) error {
		m, err := decodeMount(b)
		if err != nil {
			return err
		}
		kinds = append(kinds, m.kind)
		for _, option := range m.options {
			if dir, ok := strings.CutPrefix(option, "upperdir="); ok && strings.Contains(m.kind, "overlay") {
				upper = dir
			}
		}
		return nil
	})
	if err == nil && (upper == "" || len(kinds) != 1) {
		err = fmt.Errorf("container %s: %w: snapshotter %s gives it mounts of type %s, want one overlay (snapshotters nydus, overlayfs)",
			one.ID, ErrNoUpper, one.Snapshotter, strings.Join(kinds, ", "))
	}
	if err != nil {
		return "", err
	}
	return upper, nil
}

// Status says what the first process of a container does.
type Status uint32

// What a task of containerd may be. A container without a task does not run.
const (
	NoTask  Status = 0
	Created Status = 1
	Running Status = 2
	Stopped Status = 3
	Paused  Status = 4
	Pausing Status = 5
)

func (s Status) String() string {
	known := []string{"no task", "created", "running", "stopped", "paused", "being paused"}
	if int(s) < len(known) {
		return known[s]
	}
	return fmt.Sprintf("status %d", uint32(s))
}

// Task is the first process of a container; PID is 0 unless it lives.
type Task struct {
	PID    uint32
	Status Status
}

// Lives reports whether there is a process, running or not.
func (t Task) Lives() bool {
	return t.PID != 0 && (t.Status == Running || t.Status == Paused || t.Status == Pausing || t.Status == Created)
}

// Task asks how a container is.
func (c *Client) Task(ctx context.Context, id string) (t Task, err error) {
	answer, err := c.call(ctx, "Tasks", "Get", strings1(id))
	if errors.Is(err, ErrNotFound) {
		return Task{}, nil
	}
	if err != nil {
		return Task{}, err
	}
	err = each(answer, func(b []byte) error {
		t, err = decodeProcess(b)
		return err
	})
	return t, err
}
