//go:build !purego

package zstdenc

// search is searchGo by hand: the compiler runs out of registers for it, and with what
// it moves to the stack and back a frame takes a quarter longer.
//
//go:noescape
func search(e *Encoder, src []byte, at int, shift uint, tags uint32) (anchor int)
