//go:build !race

package vhostuser_test

import (
	"context"
	"testing"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
	"github.com/rafsd/rafsd/vhostuser/virtq"
)

// In the steady state a ring allocates nothing, however deep its chains.
func TestRingDoesNotAllocate(t *testing.T) {
	allocs := make(chan float64, 1)
	dev := &funcDevice{serve: func(ctx context.Context, r *vhostuser.Ring) error {
		var c virtq.Chain
		for r.Index() == 1 {
			if ok, err := r.Pop(&c); err != nil {
				return err
			} else if ok {
				break
			}
			if err := r.WaitKick(ctx); err != nil {
				return err
			}
		}
		if r.Index() == 1 {
			allocs <- testing.AllocsPerRun(100, func() {
				r.Return(&c)
				if ok, err := r.Pop(&c); !ok || err != nil {
					t.Error(ok, err)
				}
				if err := r.WaitKick(ctx); err != nil { // Return has interrupted it
					t.Error(err)
				}
			})
			r.Complete(&c, 0)
			r.Flush()
		}
		<-ctx.Done()
		return ctx.Err()
	}}
	_, path := serve(t, dev, vhostuser.Config{PollMax: -1})
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{})
	offer(t, vm.Rings[1], request(t, vm, "x"), 0)
	if n := <-allocs; n != 0 {
		t.Errorf("%v allocations a turn, want 0", n)
	}
	finished(t, vm.Rings[1], 1)
}
