//go:build !purego

package zstdenc

// search is searchGo by hand: the compiler has too few registers for it, and a third
// of the time of a frame goes into what it moves to the stack and back.
//
//go:noescape
func search(e *Encoder, src []byte, at int, shift uint, tags uint32) (anchor int)
