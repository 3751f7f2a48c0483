// Package export turns a RAFS image into what other tools read: a tar of its
// tree, a layer of an OCI image, a disk that Linux mounts as EROFS.
//
// The way of an export:
//
//  1. A walk goes through the names of the image in the order of their paths.
//  2. A second one runs ahead of it and says which chunks will be wanted;
//     [Data] fetches, decodes and verifies them, several at once.
//  3. The first one writes what describes an entry, and the bytes as they come.
//
// Everything is a stream: neither a file nor the tree is ever held as a whole,
// and the same image gives the same bytes.
//
// The package trusts an image.Image to be what image.Open has checked, and
// nothing else; bytes of files have been verified by rafs/blob/fetch. It never
// writes outside of the writer or the path that it was given.
package export

// Progress is told how far an export is, in bytes of file content, from the
// goroutine that exports: never more often than once in 1 MiB, and at the end.
// total is an upper bound until done reaches it.
type Progress func(done, total int64)

// meter calls a Progress now and then.
type meter struct {
	tell        Progress
	done, total int64
	told        int64
}

// progressStep is how many bytes lie between two calls at least.
const progressStep = 1 << 20

func (m *meter) add(n int) {
	m.done += int64(n)
	if m.tell != nil && m.done-m.told >= progressStep {
		m.told = m.done
		m.tell(m.done, max(m.done, m.total))
	}
}

func (m *meter) finish() {
	if m.tell != nil {
		m.tell(m.done, m.done)
	}
}
