package check

import (
	"context"
	"testing"

	"github.com/rafsd/rafsd/rafs/rafstest"
)

func TestNydusImagesAreRight(t *testing.T) {
	for _, c := range rafstest.Nydus(t) {
		t.Run(c.Name, func(t *testing.T) {
			if err := Image(context.Background(), c.Bootstrap); err != nil {
				t.Error(err)
			}
		})
	}
}
