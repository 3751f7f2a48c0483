package guestmem

import (
	"bytes"
	"errors"
	"math"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

const page = 4096

// memfd returns a file of n bytes whose i-th page is full of i.
func memfd(t testing.TB, n int) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("guestmem-test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "guestmem-test")
	t.Cleanup(func() { f.Close() })
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i / page)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

func memory(t testing.TB, f *os.File, regions ...Region) *Memory {
	t.Helper()
	m := new(Memory)
	t.Cleanup(func() { m.Close() })
	fds := make([]int, len(regions))
	for i := range fds {
		fds[i] = int(f.Fd())
	}
	if _, err := m.Replace(regions, fds); err != nil {
		t.Fatal(err)
	}
	return m
}

func pin(t testing.TB, m *Memory) *Snapshot {
	t.Helper()
	s := m.Pin()
	if s == nil {
		t.Fatal("Pin = nil, want a snapshot")
	}
	t.Cleanup(s.Unpin)
	return s
}

// twoRegions are neighbours for the guest, and swapped in the file.
func twoRegions(t testing.TB) *Snapshot {
	return pin(t, memory(t, memfd(t, 4*page),
		Region{GuestPhys: 0x1000, Size: 2 * page, UserAddr: 0x7f0000001000, MmapOffset: 2 * page},
		Region{GuestPhys: 0x3000, Size: 2 * page, UserAddr: 0x7f0000009000, MmapOffset: 0}))
}

func TestSlices(t *testing.T) {
	s := twoRegions(t)
	for _, tc := range []struct {
		name string
		gpa  uint64
		n    uint32
		want []int // lengths
		err  error
	}{
		{"one byte", 0x1000, 1, []int{1}, nil},
		{"whole region", 0x1000, 2 * page, []int{2 * page}, nil},
		{"straddling", 0x2ffe, 4, []int{2, 2}, nil},
		{"both regions", 0x1000, 4 * page, []int{2 * page, 2 * page}, nil},
		{"nothing", 0x1000, 0, nil, nil},
		{"nothing nowhere", 0, 0, nil, nil},
		{"before", 0xfff, 1, nil, ErrAddress},
		{"before and in", 0xfff, 2, nil, ErrAddress},
		{"after", 0x5000, 1, nil, ErrAddress},
		{"out of the end", 0x4fff, 2, nil, ErrAddress},
		{"huge", 0x1000, math.MaxUint32, nil, ErrAddress},
		{"at the top", math.MaxUint64, 2, nil, ErrAddress},
	} {
		got, err := s.Slices(nil, tc.gpa, tc.n)
		if !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil) {
			t.Errorf("%s: err = %v, want %v", tc.name, err, tc.err)
		}
		var lens []int
		for _, b := range got {
			lens = append(lens, len(b))
		}
		if len(lens) != len(tc.want) || !equal(lens, tc.want) {
			t.Errorf("%s: lengths %v, want %v", tc.name, lens, tc.want)
		}
	}
}

func equal(a, b []int) bool {
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestSlicesShowTheFile(t *testing.T) {
	s := twoRegions(t)
	got, err := s.Slices(nil, 0x2fff, 2)
	if err != nil {
		t.Fatal(err)
	}
	if got[0][0] != 3 || got[1][0] != 0 {
		t.Errorf("bytes at the seam = %d, %d, want 3, 0", got[0][0], got[1][0])
	}
}

func TestSlicesMerge(t *testing.T) {
	s := twoRegions(t)
	var got [][]byte
	var err error
	// Neighbours, a gap, and a neighbour that lies in the next region.
	for _, gpa := range []uint64{0x1000, 0x1010, 0x1020, 0x2ff0, 0x3000} {
		if got, err = s.Slices(got, gpa, 16); err != nil {
			t.Fatal(err)
		}
	}
	if len(got) != 3 || len(got[0]) != 48 || len(got[1]) != 16 || len(got[2]) != 16 {
		t.Fatalf("%d slices, want lengths 48, 16, 16", len(got))
	}
	// A failure takes back what it has merged.
	last := len(got[1])
	if got, err = s.Slices(got[:2], 0x3000, 3*page); !errors.Is(err, ErrAddress) || len(got) != 2 || len(got[1]) != last {
		t.Errorf("after an error: %d slices, last of %d, %v; want 2, %d, ErrAddress", len(got), len(got[1]), err, last)
	}
}

func TestPart(t *testing.T) {
	s := twoRegions(t)
	for _, tc := range []struct {
		name     string
		user     uint64
		n, align int
		ok       bool
	}{
		{"start", 0x7f0000001000, 16, 16, true},
		{"whole", 0x7f0000001000, 2 * page, 16, true},
		{"one more", 0x7f0000001000, 2*page + 1, 16, false},
		{"last bytes", 0x7f0000001000 + 2*page - 16, 16, 16, true},
		{"over the end", 0x7f0000001000 + 2*page - 16, 17, 16, false},
		{"odd", 0x7f0000001002, 6, 4, false},
		{"two-aligned", 0x7f0000001002, 6, 2, true},
		{"between regions", 0x7f0000004000, 1, 1, false},
		{"guest address", 0x1000, 1, 1, false},
		{"empty", 0x7f0000001000, 0, 1, false},
		{"negative", 0x7f0000001000, -1, 1, false},
		{"top", math.MaxUint64, 1, 1, false},
	} {
		p, err := s.Part(tc.user, tc.n, tc.align)
		if (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrAddress) {
			t.Errorf("%s: err = %v, want ok = %v", tc.name, err, tc.ok)
		}
		if err == nil && p.Len() != tc.n {
			t.Errorf("%s: Len = %d, want %d", tc.name, p.Len(), tc.n)
		}
	}
}

func TestPartWords(t *testing.T) {
	s := twoRegions(t)
	p, err := s.Part(0x7f0000001002, 10, 2)
	if err != nil {
		t.Fatal(err)
	}
	copy(p.Bytes(), []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	for off, want := range map[int]uint16{0: 0x0201, 2: 0x0403, 4: 0x0605, 8: 0x0a09} {
		if got := p.Load16(off); got != want {
			t.Errorf("Load16(%d) = %#x, want %#x", off, got, want)
		}
		if got := p.Get16(off); got != want {
			t.Errorf("Get16(%d) = %#x, want %#x", off, got, want)
		}
	}
	p.Store16(0, 0xbbaa)
	p.Store32(2, 0xffeeddcc)
	if want := []byte{0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 7, 8, 9, 10}; !bytes.Equal(p.Bytes(), want) {
		t.Errorf("after stores: % x, want % x", p.Bytes(), want)
	}
	for name, f := range map[string]func(){
		"Load16":   func() { p.Load16(10) },
		"Load16-":  func() { p.Load16(-2) },
		"Store32":  func() { p.Store32(8, 0) },
		"Store16":  func() { p.Store16(10, 0) },
		"PartZero": func() { Part{}.Load16(0) },
	} {
		if !panics(f) {
			t.Errorf("%s outside of the part does not panic", name)
		}
	}
}

func panics(f func()) (yes bool) {
	defer func() { yes = recover() != nil }()
	f()
	return false
}

func TestRegionsRefused(t *testing.T) {
	f := memfd(t, 4*page)
	pipe := make([]int, 2)
	if err := unix.Pipe2(pipe, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	good := Region{GuestPhys: 0x10000, Size: page, UserAddr: 0x7f0000010000}
	for _, tc := range []struct {
		name string
		r    Region
		fd   int
	}{
		{"empty", Region{}, int(f.Fd())},
		{"guest address overflows", Region{GuestPhys: math.MaxUint64 - 1, Size: page}, int(f.Fd())},
		{"user address overflows", Region{UserAddr: math.MaxUint64 - 1, Size: page}, int(f.Fd())},
		{"offset overflows", Region{MmapOffset: math.MaxUint64, Size: page}, int(f.Fd())},
		{"offset is no file offset", Region{MmapOffset: math.MaxInt64, Size: page}, int(f.Fd())},
		{"huge", Region{Size: math.MaxUint64}, int(f.Fd())},
		{"beyond the file", Region{Size: 5 * page}, int(f.Fd())},
		{"offset beyond the file", Region{Size: page, MmapOffset: 4 * page}, int(f.Fd())},
		{"a pipe", Region{Size: page}, pipe[0]},
		{"no descriptor", Region{Size: page}, -1},
		{"same guest address", Region{GuestPhys: 0x10fff, Size: 1, UserAddr: 1}, int(f.Fd())},
		{"same user address", Region{Size: page, UserAddr: 0x7f000000f001}, int(f.Fd())},
	} {
		m := memory(t, f, good)
		if err := m.Add(tc.r, tc.fd); !errors.Is(err, ErrRegion) {
			t.Errorf("Add, %s: err = %v, want ErrRegion", tc.name, err)
		}
		if _, err := m.Replace([]Region{good, tc.r}, []int{int(f.Fd()), tc.fd}); !errors.Is(err, ErrRegion) {
			t.Errorf("Replace, %s: err = %v, want ErrRegion", tc.name, err)
		}
		if got := pin(t, m).Regions(); got != 1 {
			t.Errorf("%s: %d regions after it was refused, want 1", tc.name, got)
		}
	}
	if _, err := new(Memory).Replace(nil, nil); !errors.Is(err, ErrRegion) {
		t.Errorf("Replace by nothing: err = %v, want ErrRegion", err)
	}
}

func TestOddOffset(t *testing.T) {
	f := memfd(t, 4*page)
	m := memory(t, f, Region{GuestPhys: 0, Size: page, UserAddr: 0x1000, MmapOffset: page + 100})
	got, err := pin(t, m).Slices(nil, 0, page)
	if err != nil {
		t.Fatal(err)
	}
	if got[0][0] != 1 || got[0][page-101] != 1 || got[0][page-100] != 2 {
		t.Errorf("bytes = %d, %d, %d, want 1, 1, 2", got[0][0], got[0][page-101], got[0][page-100])
	}
}

func isGone(s *Snapshot) bool {
	select {
	case <-s.Gone():
		return true
	default:
		return false
	}
}

func TestPinsKeepMappings(t *testing.T) {
	f := memfd(t, 4*page)
	a := Region{GuestPhys: 0, Size: page, UserAddr: 0x10000}
	b := Region{GuestPhys: page, Size: page, UserAddr: 0x20000, MmapOffset: page}
	m := memory(t, f, a)
	first := m.Pin()
	bufs, err := first.Slices(nil, 0, page)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Add(b, int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	second := m.Pin()
	old, err := m.Remove(a)
	if err != nil || old != second {
		t.Fatalf("Remove = %p, %v, want the former snapshot %p", old, err, second)
	}
	if got := pin(t, m).Regions(); got != 1 {
		t.Errorf("%d regions are left, want 1", got)
	}
	bufs[0][0] = 77 // a region that is removed is mapped while it is pinned
	if isGone(first) || isGone(second) {
		t.Error("a pinned snapshot is gone")
	}
	first.Unpin()
	second.Unpin()
	if !isGone(first) || !isGone(second) {
		t.Error("a snapshot without pins is not gone")
	}
	if _, err := m.Remove(a); !errors.Is(err, ErrRegion) {
		t.Errorf("second Remove: err = %v, want ErrRegion", err)
	}
}

// Who took a pin before a change that came in between still uses the region.
func TestGoneWaitsForOlderPins(t *testing.T) {
	f := memfd(t, 4*page)
	a := Region{GuestPhys: 0, Size: page, UserAddr: 0x10000}
	b := Region{GuestPhys: page, Size: page, UserAddr: 0x20000, MmapOffset: page}
	m := memory(t, f, a)
	first := m.Pin()
	if err := m.Add(b, int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	old, err := m.Remove(a)
	if err != nil {
		t.Fatal(err)
	}
	if isGone(old) {
		t.Error("the region is said to be gone, and a request still has it")
	}
	first.Unpin()
	if !isGone(old) {
		t.Error("nobody has the region, and it is not gone")
	}
}

func TestLatePin(t *testing.T) {
	m := memory(t, memfd(t, page), Region{Size: page})
	s := m.Pin()
	s.Unpin()
	m.Close()
	if s.tryPin() {
		t.Error("tryPin succeeded on a snapshot that is gone")
	}
	if m.Pin() != nil {
		t.Error("Pin after Close is not nil")
	}
	if m.Close() != nil {
		t.Error("second Close returned a snapshot")
	}
}

func TestPinAgainstReplace(t *testing.T) {
	f := memfd(t, page)
	region := []Region{{Size: page}}
	m := memory(t, f, region...)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range 20000 {
				s := m.Pin()
				if b, err := s.Slices(nil, 0, 8); err != nil || b[0][0] != 0 {
					t.Errorf("Slices = %v, %v", b, err)
				}
				s.Unpin()
			}
		})
	}
	for range 2000 {
		old, err := m.Replace(region, []int{int(f.Fd())})
		if err != nil {
			t.Fatal(err)
		}
		<-old.Gone()
	}
	wg.Wait()
}

func TestSealed(t *testing.T) {
	f := memfd(t, page)
	if pin(t, memory(t, f, Region{Size: page})).Sealed() {
		t.Error("Sealed = true for a memfd without seals")
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		t.Fatal(err)
	}
	if !pin(t, memory(t, f, Region{Size: page})).Sealed() {
		t.Error("Sealed = false for a memfd that cannot shrink")
	}
}

func TestVanishedMemory(t *testing.T) {
	f := memfd(t, 2*page)
	s := pin(t, memory(t, f, Region{Size: 2 * page}))
	bufs, err := s.Slices(nil, 0, 2*page)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Part(page, 16, 4)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(page); err != nil {
		t.Fatal(err)
	}
	touch := func(f func()) (err error) {
		defer Catch(Arm(), &err)
		f()
		return nil
	}
	for name, f := range map[string]func(){
		"load":     func() { p.Load16(0) },
		"store":    func() { p.Store32(0, 1) },
		"put":      func() { p.Put64(0, 1) },
		"copy out": func() { copy(make([]byte, 2*page), bufs[0]) },
		"copy in":  func() { copy(bufs[0], make([]byte, 2*page)) },
	} {
		if err := touch(f); !errors.Is(err, ErrFault) {
			t.Errorf("%s: err = %v, want ErrFault", name, err)
		}
	}
	if err := touch(func() { bufs[0][0]++ }); err != nil {
		t.Errorf("the page that is left: err = %v", err)
	}
	if !panics(func() { _ = touch(func() { panic("other") }) }) {
		t.Error("Catch swallowed a panic that is no fault")
	}
	var nothing *Snapshot
	if !panics(func() { _ = touch(func() { nothing.Pin() }) }) {
		t.Error("Catch took a nil pointer for a fault")
	}
}

func BenchmarkPin(b *testing.B) {
	s := pin(b, memory(b, memfd(b, page), Region{Size: page}))
	b.ReportAllocs()
	for b.Loop() {
		s.Pin()
		s.Unpin()
	}
}

func BenchmarkSlices(b *testing.B) {
	var regions []Region
	for i := range uint64(8) {
		regions = append(regions, Region{GuestPhys: i * 2 * page, UserAddr: i * 2 * page, Size: page})
	}
	s := pin(b, memory(b, memfd(b, page), regions...))
	var dst [][]byte
	b.ReportAllocs()
	for b.Loop() {
		dst, _ = s.Slices(dst[:0], 10*page, 128)
	}
}

// Huge pages need not exist for this: nothing touches the mapping.
func TestHugePagesAreAligned(t *testing.T) {
	const huge = 2 << 20
	fd, err := unix.MemfdCreate("guestmem-huge", unix.MFD_CLOEXEC|unix.MFD_HUGETLB|unix.MFD_HUGE_2MB)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, 4*huge); err != nil {
		t.Fatal(err)
	}
	r := Region{Size: huge, MmapOffset: huge + page}
	mp, err := mapRegion(r, fd)
	if err != nil {
		t.Fatal(err)
	}
	defer mp.release()
	if len(mp.whole) != 2*huge || len(mp.data) != huge || &mp.whole[page] != &mp.data[0] {
		t.Errorf("mapped %#x bytes for %#x, want %#x with the region %#x bytes in", len(mp.whole), len(mp.data), 2*huge, page)
	}
}
