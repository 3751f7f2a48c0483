package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
)

// startsEach is how often each daemon is started to see how long it takes.
const startsEach = 9

// starts measures how long each daemon takes to listen, in turns, one at a time. Its
// cache is empty at the first start only, and nobody connects.
func starts(ctx context.Context, img *image, work string, found []server, rep *report) error {
	took := make([][]float64, len(found))
	for round := range startsEach {
		for i := range found {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := (i + round) % len(found)
			dir := filepath.Join(work, "start-"+found[n].name)
			if err := furnish(img, dir, filepath.Join(dir, "cache")); err != nil {
				return err
			}
			d := &daemon{server: found[n], dir: dir}
			err := d.exec(img, filepath.Join(dir, fmt.Sprintf("sock%d", round)))
			d.stop()
			if err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
			took[n] = append(took[n], float64(d.listening)/1e6)
		}
	}
	for i, s := range found {
		r := rep.server(s.name)
		r.ListenMS, r.ListenWorstMS = median(took[i]), slices.Max(took[i])
	}
	return nil
}
