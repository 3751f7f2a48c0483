package store

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"fmt"
	"hash"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rafsd/rafsd/rafs/blob"
)

var (
	errDigest = blob.ErrDigest
	errBadID  = blob.ErrBadID
)

func hashOf(data []byte) v1.Hash {
	sum := sha256.Sum256(data)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// checkDescriptor refuses what cannot be verified. A digest becomes a part of
// paths, so only hex digits may.
func checkDescriptor(d v1.Descriptor) error {
	if d.Digest.Algorithm != "sha256" || len(d.Digest.Hex) != 2*sha256.Size || d.Size < 0 {
		return fmt.Errorf("descriptor %s of %d bytes: want a sha256 and a size", d.Digest, d.Size)
	}
	_, err := v1.NewHash(d.Digest.String())
	return err
}

// snapshotStep is how far apart the states of a hash are kept, in bytes.
const snapshotStep = 4 << 20

// tape reads a blob from its beginning to its end, hashed, and can be wound back:
// an upload that breaks off goes on at what the other side has.
type tape struct {
	ctx    context.Context
	want   v1.Descriptor
	open   Opener
	r      io.ReadCloser // nil: not open
	at     int64
	hash   hash.Hash
	states [][]byte // of the hash, each snapshotStep
}

func newTape(ctx context.Context, d v1.Descriptor, open Opener) (*tape, error) {
	if err := checkDescriptor(d); err != nil {
		return nil, err
	}
	t := &tape{ctx: ctx, want: d, open: open, hash: sha256.New()}
	return t, t.keep()
}

// keep notes the state of the hash at a step.
func (t *tape) keep() error {
	if t.at/snapshotStep != int64(len(t.states)) {
		return nil
	}
	state, err := t.hash.(encoding.BinaryMarshaler).MarshalBinary()
	t.states = append(t.states, state)
	return err
}

// Read reads at most to the next step. At the end it has verified the digest.
func (t *tape) Read(p []byte) (int, error) {
	left := t.want.Size - t.at
	if left == 0 {
		return 0, t.end()
	}
	if err := t.start(); err != nil {
		return 0, err
	}
	p = p[:min(int64(len(p)), left, snapshotStep-t.at%snapshotStep)]
	n, err := t.r.Read(p)
	t.hash.Write(p[:n])
	t.at += int64(n)
	if t.at%snapshotStep == 0 && n > 0 {
		if keepErr := t.keep(); keepErr != nil {
			return n, keepErr
		}
	}
	if err == io.EOF {
		err = nil
		if t.at < t.want.Size {
			err = fmt.Errorf("%s: %w: %d of %d bytes missing", t.want.Digest, io.ErrUnexpectedEOF, t.want.Size-t.at, t.want.Size)
		}
	}
	return n, err
}

func (t *tape) start() (err error) {
	if t.r == nil {
		t.r, err = t.open(t.ctx, t.at)
	}
	return err
}

// end compares the digest, once all was read, and that nothing follows.
func (t *tape) end() error {
	if err := t.start(); err != nil {
		return err
	}
	var one [1]byte
	if n, _ := io.ReadFull(t.r, one[:]); n > 0 {
		return &wrongBlob{fmt.Errorf("%s: more than %d bytes", t.want.Digest, t.want.Size)}
	}
	if got := hex.EncodeToString(t.hash.Sum(nil)); got != t.want.Digest.Hex {
		return &wrongBlob{fmt.Errorf("%s: %w, got sha256:%s", t.want.Digest, errDigest, got)}
	}
	return io.EOF
}

// seek winds to an offset: back, or forward over what need not be sent again.
func (t *tape) seek(to int64) error {
	if to < 0 || to > t.want.Size {
		return fmt.Errorf("%s: offset %d of %d bytes", t.want.Digest, to, t.want.Size)
	}
	if to < t.at {
		t.Close()
		step := min(to/snapshotStep, int64(len(t.states)-1))
		t.at, t.states = step*snapshotStep, t.states[:step+1]
		if err := t.hash.(encoding.BinaryUnmarshaler).UnmarshalBinary(t.states[step]); err != nil {
			return err
		}
	}
	_, err := io.CopyN(io.Discard, t, to-t.at)
	return err
}

// verify reads the rest.
func (t *tape) verify() error {
	_, err := io.Copy(io.Discard, t)
	return err
}

// Close ends the reading; the tape can go on with seek.
func (t *tape) Close() error {
	if t.r == nil {
		return nil
	}
	err := t.r.Close()
	t.r = nil
	return err
}

// wrongBlob is a blob that is not what its descriptor says: reading it again does
// not help.
type wrongBlob struct{ err error }

func (e *wrongBlob) Error() string { return e.err.Error() }
func (e *wrongBlob) Unwrap() error { return e.err }

// copyTo writes all of a tape, verified.
func (t *tape) copyTo(w io.Writer) error {
	out := bufio.NewWriterSize(w, 1<<20)
	if _, err := io.Copy(out, t); err != nil {
		return err
	}
	return out.Flush()
}
