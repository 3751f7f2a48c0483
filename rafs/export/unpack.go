package export

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/blob/fetch"
	"github.com/rafsd/rafsd/rafs/image"
)

// UnpackOptions configure Unpack. The zero value is an archive of everything.
type UnpackOptions struct {
	// NoRoot leaves out "./", the entry of the root folder, which is the first.
	NoRoot bool
	// Progress, if set, is told about the bytes of files.
	Progress Progress
	// Log gets a warning for each kind of entry that a tar cannot hold. nil: none.
	Log *slog.Logger
}

// Stats count what a tar got.
type Stats struct {
	Entries   int64 // all headers, without those of pax
	Bytes     int64 // content of files
	HardLinks int64 // entries that are further names
	// Sockets are left out, since tar has no entry for them; GNU tar and
	// nydus-image do the same.
	Sockets int64
}

// Unpack writes the tree of an image as a pax archive that is the same image
// again: nanoseconds, owners, modes, xattrs under GNU tar's names, devices, names
// and targets of any bytes. A file with several names has its bytes with the
// first, by the order of paths; the others are hard links to it. Whiteouts of a
// layer come out as the entries that they are in it. Only sockets are left out.
//
// The same image gives the same bytes. After an error w holds a part of the
// archive, which lacks its end.
func Unpack(ctx context.Context, im *image.Image, data *Data, w io.Writer, o UnpackOptions) (Stats, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	u := &unpacker{im: im, tar: tar.NewWriter(w), opts: o, meter: meter{tell: o.Progress}}
	if o.Progress != nil {
		total, err := contentSize(ctx, im)
		if err != nil {
			return Stats{}, err
		}
		u.meter.total = total
	}
	u.data = data.Stream(ctx, segments(ctx, im))
	defer u.data.Close()
	for e, err := range entries(ctx, im) {
		if err != nil {
			return u.stats, err
		}
		if err := u.add(e); err != nil {
			return u.stats, fmt.Errorf("%q: %w", e.path, err)
		}
	}
	if err := u.tar.Close(); err != nil {
		return u.stats, fmt.Errorf("end of the archive: %w", err)
	}
	u.meter.finish()
	if u.stats.Sockets > 0 && o.Log != nil {
		o.Log.Warn("sockets left out: a tar cannot hold them", "count", u.stats.Sockets)
	}
	return u.stats, nil
}

// contentSize sums the bytes that Unpack will write.
func contentSize(ctx context.Context, im *image.Image) (int64, error) {
	total := int64(0)
	for e, err := range entries(ctx, im) {
		if err != nil {
			return 0, err
		}
		if e.hasData() {
			total += int64(e.attr.Size)
		}
	}
	return total, nil
}

type unpacker struct {
	im    *image.Image
	data  *fetch.Stream
	tar   *tar.Writer
	opts  UnpackOptions
	meter meter
	stats Stats
}

func (u *unpacker) add(e *entry) error {
	switch {
	case e.kind() == unix.S_IFSOCK:
		u.stats.Sockets++
		return nil
	case len(e.path) == 0 && u.opts.NoRoot:
		return nil
	}
	h, err := header(u.im, e)
	if err != nil {
		return err
	}
	if err := u.tar.WriteHeader(h); err != nil {
		return err
	}
	u.stats.Entries++
	if e.first != "" {
		u.stats.HardLinks++
	}
	if !e.hasData() {
		return nil
	}
	return u.content(int64(e.attr.Size))
}

// content writes the next size bytes of the stream.
func (u *unpacker) content(size int64) error {
	for size > 0 {
		p, err := u.data.Next(int(min(size, progressStep)))
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		if _, err := u.tar.Write(p); err != nil {
			return err
		}
		size -= int64(len(p))
		u.stats.Bytes += int64(len(p))
		u.meter.add(len(p))
	}
	return nil
}
