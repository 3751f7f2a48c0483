//go:build !amd64 || purego

package zstdenc

func search(e *Encoder, src []byte, at int, shift uint, tags uint32) (anchor int) {
	return searchGo(e, src, at, shift, tags)
}
