package image

// KeepPages makes an image that lies in a file keep so many places of it.
func (im *Image) KeepPages(n uint32) { im.pages.limit = n }
