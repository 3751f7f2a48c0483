package vhostuser

import (
	"context"
	"net"
)

// ServeConn serves one front-end that is connected already.
func (s *Server) ServeConn(ctx context.Context, c *net.UnixConn) error { return s.session(ctx, c) }
