package vhostuser_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
)

// No kick and no notification is lost, whichever side sleeps or polls: a request
// that nobody sees is a timeout here.
func TestNoLostWakeups(t *testing.T) {
	const requests = 3000
	for _, features := range []uint64{vhostuser.FeatureVersion1, vhostusertest.DefaultFeatures} {
		for _, pollMax := range []time.Duration{-1, 0, time.Millisecond} {
			for _, depth := range []int{1, 7} {
				t.Run(fmt.Sprintf("features %#x, poll %v, depth %d", features, pollMax, depth), func(t *testing.T) {
					_, path := serve(t, attrs{}, vhostuser.Config{PollMax: pollMax})
					vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{Features: features})
					load := vhostusertest.Load{Ring: vm.Rings[1]}
					for range depth {
						q, err := vm.Rings[1].NewRequest(vhostusertest.RequestSize{Args: 16, Reply: 104})
						if err != nil {
							t.Fatal(err)
						}
						load.Requests = append(load.Requests, q)
					}
					left := requests
					load.Fill = func(q *vhostusertest.Request) bool {
						q.Getattr(1)
						left--
						return left >= 0
					}
					res, err := load.Run(time.Hour)
					if err != nil {
						t.Fatal(err)
					}
					if res.Ops != requests {
						t.Errorf("%d requests were answered, want %d", res.Ops, requests)
					}
				})
			}
		}
	}
}

// A device may wait with a context of its own.
func TestWaitKickWithAnotherContext(t *testing.T) {
	waited := make(chan error, 1)
	dev := &funcDevice{serve: func(ctx context.Context, r *vhostuser.Ring) error {
		if r.Index() == 1 {
			own, cancel := context.WithCancel(context.WithoutCancel(ctx))
			go cancel()
			var err error
			for err == nil { // the first kick is QEMU's own
				err = r.WaitKick(own)
			}
			waited <- err
			// One that never ends does not outlive the ring's.
			for err = nil; err == nil; {
				err = r.WaitKick(context.Background())
			}
			waited <- err
		}
		<-ctx.Done()
		return ctx.Err()
	}}
	_, path := serve(t, dev, vhostuser.Config{})
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{})
	if err := <-waited; !errors.Is(err, context.Canceled) {
		t.Errorf("WaitKick = %v, want the end of its context", err)
	}
	if err := vm.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; !errors.Is(err, context.Canceled) {
		t.Errorf("WaitKick = %v, want the end of the ring's context", err)
	}
}

// Stats tell polling from sleeping.
func TestStats(t *testing.T) {
	srv, path := serve(t, &echo{}, vhostuser.Config{PollMax: -1})
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{})
	for range 10 {
		exchange(t, vm, 1, "x")
	}
	if s := srv.Stats(); s.Sleeps == 0 || s.Spins != 0 || s.Broken != 0 {
		t.Errorf("Stats = %+v, want sleeps, no spins, nothing broken", s)
	}
}
