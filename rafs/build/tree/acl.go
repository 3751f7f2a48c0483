package tree

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
)

// The pax records of access control lists, which star invented and GNU tar and
// libarchive write as well, and the xattrs that Linux keeps them in.
var aclRecords = map[string]string{
	"SCHILY.acl.access":  "system.posix_acl_access",
	"SCHILY.acl.default": "system.posix_acl_default",
}

// The tags of entries, and how Linux stores a list (include/uapi/linux/posix_acl.h
// and posix_acl_xattr.h).
const (
	aclVersion  = 2
	aclUserObj  = 0x01 // twice that with an id
	aclGroupObj = 0x04 // twice that with an id
	aclMask     = 0x10
	aclOther    = 0x20
	aclNoID     = 1<<32 - 1
	// maxACL bounds the entries of a list: what fits into an xattr.
	maxACL = (64<<10 - 4 - 1) / 8
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// parseACL turns the text form of a list into that of the xattr. A list that is
// no more than the mode says is empty. It is not ok where a user or a group is
// named and its number is not told.
func parseACL(text string, access bool) (value string, ok bool) {
	var list []aclEntry
	fields := strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == '\n' })
	for _, field := range fields {
		field, _, _ = strings.Cut(field, "#") // effective rights
		if field = strings.TrimSpace(field); field == "" {
			continue
		}
		e, ok := parseACLEntry(field)
		if !ok || len(list) == maxACL {
			return "", false
		}
		list = append(list, e)
	}
	if access && len(list) == 3 || len(list) == 0 {
		return "", true
	}
	slices.SortFunc(list, func(a, b aclEntry) int { return cmp.Or(cmp.Compare(a.tag, b.tag), cmp.Compare(a.id, b.id)) })
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for i, e := range list {
		if i > 0 && e.tag == list[i-1].tag && e.id == list[i-1].id {
			return "", false
		}
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b), true
}

// parseACLEntry parses "user:NAME:rwx", with ":ID" behind where star wrote it.
func parseACLEntry(s string) (e aclEntry, ok bool) {
	parts := strings.Split(s, ":")
	if len(parts) == 2 && (parts[0] == "mask" || parts[0] == "other" || parts[0] == "m" || parts[0] == "o") {
		parts = []string{parts[0], "", parts[1]} // the short form
	}
	if len(parts) < 3 || len(parts) > 4 {
		return e, false
	}
	e.id = aclNoID
	switch parts[0] {
	case "user", "u":
		e.tag = aclUserObj
	case "group", "g":
		e.tag = aclGroupObj
	case "mask", "m":
		e.tag = aclMask
	case "other", "o":
		e.tag = aclOther
	default:
		return e, false
	}
	if parts[1] != "" {
		id, err := strconv.ParseUint(parts[len(parts)-1], 10, 32)
		if len(parts) == 3 {
			id, err = strconv.ParseUint(parts[1], 10, 32)
		}
		if err != nil || e.tag > aclGroupObj || id == aclNoID {
			return e, false
		}
		e.tag, e.id = e.tag*2, uint32(id)
	}
	for _, c := range parts[2] {
		switch c {
		case 'r':
			e.perm |= 4
		case 'w':
			e.perm |= 2
		case 'x':
			e.perm |= 1
		case '-':
		default:
			return e, false
		}
	}
	return e, true
}
