package backend

import (
	"context"
	"io"
)

// streamPiece is how much of a blob one request of a Stream asks for, in bytes.
const streamPiece = 1 << 20

// Stream reads a blob of size bytes from off to its end, piece by piece.
func Stream(ctx context.Context, r Reader, off, size int64) io.Reader {
	return &stream{ctx: ctx, r: r, at: off, size: size}
}

type stream struct {
	ctx      context.Context
	r        Reader
	at, size int64  // at is where the next piece begins
	buf      []byte // what was fetched
	rest     []byte // of buf, what was not read yet
}

func (s *stream) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		n := min(streamPiece, s.size-s.at)
		if n <= 0 {
			return 0, io.EOF
		}
		if s.buf == nil {
			s.buf = make([]byte, n)
		}
		s.rest = s.buf[:n]
		if err := s.r.ReadRange(s.ctx, s.rest, s.at); err != nil {
			s.rest = nil
			return 0, err
		}
		s.at += n
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}
