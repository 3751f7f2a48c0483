package tree

import "strings"

// Most sources name entries after their paths, with "./" before or a slash
// behind. A packed name says how in one byte, or holds the name.
const (
	nameDot   = 1 << iota // "./" and the path
	nameRoot              // "/" and the path
	nameSlash             // the path and "/"
	nameOther             // what follows
)

// packName packs the name of an entry; "" is the name that shownPath gives.
func packName(o op, path, name string) string {
	shown := shownPath(o, path)
	form := byte(0)
	rest, ok := strings.CutSuffix(name, shown)
	if shown != "" && strings.HasSuffix(name, shown+"/") {
		rest, ok = strings.CutSuffix(name, shown+"/")
		form |= nameSlash
	}
	switch {
	case ok && rest == "":
	case ok && rest == "./":
		form |= nameDot
	case ok && rest == "/":
		form |= nameRoot
	default:
		return string([]byte{nameOther}) + name
	}
	if form == 0 {
		return ""
	}
	return string([]byte{form})
}

// unpackName returns what packName packed.
func unpackName(o op, path, packed string) string {
	shown := shownPath(o, path)
	if packed == "" {
		return shown
	}
	form := packed[0]
	switch {
	case form&nameOther != 0:
		return packed[1:]
	case form&nameDot != 0:
		shown = "./" + shown
	case form&nameRoot != 0:
		shown = "/" + shown
	}
	if form&nameSlash != 0 {
		shown += "/"
	}
	return shown
}

// shownPath is what a tar calls an entry.
func shownPath(o op, path string) string {
	switch o {
	case opWhiteout:
		at := strings.LastIndexByte(path, '/') + 1
		return path[:at] + whiteoutPrefix + path[at:]
	case opOpaque:
		if path == "" {
			return whiteoutOpaque
		}
		return path + "/" + whiteoutOpaque
	}
	return path
}
