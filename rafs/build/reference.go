package build

import (
	"errors"
	"fmt"
)

// reference builds an image over data that stays what it is.
func (c *creation) reference() error {
	return fmt.Errorf("source type %s: %w", c.opts.Type, errors.ErrUnsupported)
}
