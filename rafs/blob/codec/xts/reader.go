package xts

import (
	"errors"
	"fmt"
	"io"
)

// Reader decrypts a data unit that is too long to be held. It is Decrypt in its
// result and its errors.
func (k *Key) Reader(r io.Reader) io.Reader { return &reader{k: k, r: r, tweak: k.tweak} }

const (
	readerSize = 64 << 10
	// held is what may be the end, of which only the end of r tells how it is read.
	held = 2 * blockSize
)

type reader struct {
	k     *Key
	r     io.Reader
	tweak [blockSize]byte // of the next block
	buf   []byte
	n     int    // bytes of buf that are not decrypted yet
	out   []byte // those that are, and were not read
	began bool
	err   error
}

func (r *reader) Read(p []byte) (int, error) {
	for len(r.out) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.err = r.fill()
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}

// fill decrypts what comes next, but for the bytes that may be the end.
func (r *reader) fill() error {
	if r.buf == nil {
		r.buf = make([]byte, readerSize+held)
	}
	copy(r.buf, r.buf[len(r.buf)-r.n:]) // what was held back
	n, err := io.ReadFull(r.r, r.buf[r.n:])
	all := r.buf[:r.n+n]
	switch {
	case err == nil:
		for i := 0; i < readerSize; i += blockSize {
			r.k.decrypt(all[i:i+blockSize], all[i:i+blockSize], &r.tweak)
			double(&r.tweak)
		}
		r.out, r.n, r.began = all[:readerSize], held, true
		return nil
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return err
	case len(all) < blockSize && !r.began:
		return fmt.Errorf("aes128xts: %d bytes: %w", len(all), ErrSize)
	}
	r.k.decryptEnd(all, all, &r.tweak)
	r.out, r.n = all, 0
	return io.EOF
}
