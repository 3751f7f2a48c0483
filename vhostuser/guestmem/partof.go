package guestmem

// PartOf returns b as a Part, for the driver's side of a ring, which has mapped
// the memory itself. Precondition: b lies in a mapping of whole pages, as
// unix.Mmap returns them, that outlives the Part.
func PartOf(b []byte) Part { return Part{b} }
