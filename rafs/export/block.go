package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
)

// BlockOptions configure Block.
type BlockOptions struct {
	// Verity appends a hash tree for dm-verity.
	Verity bool
	// DeviceTable keeps the bootstrap as it is, with each blob where its device
	// slot maps it, which is what nydus-image exports, byte for byte. Such a disk
	// can be mounted since Linux 6.4 only (6.1 refuses it), and fsck.erofs asks for
	// the devices.
	DeviceTable bool
	// TempDir takes what a v5 image needs besides; os.TempDir by default.
	TempDir string
	// Progress, if set, is told about the bytes of chunks, and those of the disk
	// once more when they are hashed.
	Progress Progress
}

// Disk describes a disk that Block wrote.
type Disk struct {
	BlockSize int   // bytes
	Blocks    int64 // of the file system
	Size      int64 // of the file in bytes, with the hash tree; much of it may be holes
	DataBytes int64 // bytes of chunks
	Verity    *Verity
}

// Block writes an image as one flat EROFS disk to the file at path, which needs
// nothing else to be mounted: no blobs, no device options, no daemon. It is meant
// for Linux 5.16 and later (tarfs images, which have blocks of 512 bytes, for 6.4).
//
// The metadata of an image says in which device a chunk lies. Without device
// options Linux finds it by the device table (mapped_blkaddr), but only since
// 6.4; before that it refuses the disk. So the metadata written here has no
// device table: all addresses are those of the one disk.
//
// Each chunk is written once, where the image has it in the uncompressed space of
// its blob. A v5 image, which has no metadata for that, gets metadata of EROFS. Blocks of zeros become holes of the file. The file appears at path
// when it is complete and on the disk, in one step; before that nothing of it can
// be seen, and nothing is left of it after an error or a kill. The error is that
// of the file system if that is full.
func Block(ctx context.Context, im *image.Image, data *Data, path string, o BlockOptions) (disk *Disk, err error) {
	plan, err := planDisk(ctx, im, &o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, plan.close()) }()
	out, err := create(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, out.abort()) }()
	b := &blockWriter{plan: plan, out: out, meter: meter{tell: o.Progress, total: plan.content}}
	if o.Verity {
		b.meter.total += plan.size()
	}
	disk = &Disk{BlockSize: plan.blockSize(), Blocks: plan.blocks, Size: plan.size()}
	if err := b.write(ctx, data); err != nil {
		return nil, fmt.Errorf("%s: after %d of %d bytes: %w", path, b.meter.done, plan.content, err)
	}
	disk.DataBytes = b.meter.done
	if o.Verity {
		disk.Verity, err = hashTree(out, plan.blockSize(), plan.blocks, func(n int) error {
			b.meter.add(n)
			return ctx.Err()
		})
		if err != nil {
			return nil, fmt.Errorf("%s: hash tree: %w", path, err)
		}
	}
	fi, err := out.Stat()
	if err != nil {
		return nil, err
	}
	disk.Size = fi.Size()
	if err := out.commit(); err != nil {
		return nil, err
	}
	b.meter.finish()
	return disk, nil
}

type blockWriter struct {
	plan  *diskPlan
	out   *output
	meter meter
}

// write writes all that the file system is made of.
func (b *blockWriter) write(ctx context.Context, data *Data) error {
	if err := b.out.Truncate(b.plan.size()); err != nil {
		return err
	}
	if err := b.plan.metadata(ctx, b.out); err != nil {
		return err
	}
	return b.chunks(ctx, data)
}

// chunks writes the chunks of all blobs, in their order.
func (b *blockWriter) chunks(ctx context.Context, data *Data) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := data.Stream(ctx, b.plan.segments())
	defer stream.Close()
	for seg, err := range b.plan.segments() {
		if err != nil {
			return err
		}
		// A segment that was not begun comes in one piece.
		p, err := stream.Next(int(seg.Length))
		if errors.Is(err, io.EOF) || err == nil && len(p) != int(seg.Length) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("chunk %d of blob %s: %w", seg.Chunk.Index, seg.Chunk.Blob.ID, err)
		}
		if err := writeSparse(b.out, p, b.plan.place(&seg.Chunk)); err != nil {
			return err
		}
		b.meter.add(len(p))
	}
	return nil
}

// segments yields the chunks of all blobs.
func (p *diskPlan) segments() iter.Seq2[blob.Segment, error] {
	return func(yield func(blob.Segment, error) bool) {
		for i := range p.source.Blobs() {
			for seg, err := range ChunkSegments(p.source, uint32(i)) {
				if err == nil && p.place(&seg.Chunk) < 0 {
					continue
				}
				if !yield(seg, err) {
					return
				}
			}
		}
	}
}

// hole is the unit of holes: what file systems allocate.
const hole = 4096

var zeros [hole]byte

func isZero(p []byte) bool { return len(p) <= hole && string(p) == string(zeros[:len(p)]) }

// writeSparse writes p at off, but for units of the file that stay zero: the file
// is new and has no bytes there.
func writeSparse(w io.WriterAt, p []byte, off int64) error {
	for len(p) > 0 {
		skip, n := 0, 0
		for skip < len(p) && isZero(p[skip:skip+unit(p[skip:], off+int64(skip))]) {
			skip += unit(p[skip:], off+int64(skip))
		}
		for skip+n < len(p) && !isZero(p[skip+n:skip+n+unit(p[skip+n:], off+int64(skip+n))]) {
			n += unit(p[skip+n:], off+int64(skip+n))
		}
		if n > 0 {
			if _, err := w.WriteAt(p[skip:skip+n], off+int64(skip)); err != nil {
				return err
			}
		}
		p, off = p[skip+n:], off+int64(skip+n)
	}
	return nil
}

// unit is how much of p belongs to the unit of the file that off is in.
func unit(p []byte, off int64) int {
	return int(min(int64(len(p)), hole-off%hole))
}
