package containerd

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// The messages are those of containerd's API, version 1.x (api/services/*/v1,
// api/types). Of each only the fields that somebody here asks for are known; the
// numbers stand where they are used.

// field is one of a message: a number, or bytes.
type field struct {
	tag    protowire.Number
	number uint64
	bytes  []byte
}

// eachField calls visit for the fields of a message.
func eachField(b []byte, visit func(field) error) error {
	for len(b) > 0 {
		tag, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("message: %w", protowire.ParseError(n))
		}
		b = b[n:]
		f := field{tag: tag}
		switch kind {
		case protowire.VarintType:
			f.number, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(tag, kind, b)
		}
		if n < 0 {
			return fmt.Errorf("message: field %d: %w", tag, protowire.ParseError(n))
		}
		b = b[n:]
		if kind != protowire.VarintType && kind != protowire.BytesType {
			continue
		}
		if err := visit(f); err != nil {
			return err
		}
	}
	return nil
}

// each calls visit for the messages that are field 1 of another, which is how
// answers hold one thing or many.
func each(answer []byte, visit func(b []byte) error) error {
	return eachField(answer, func(f field) error {
		if f.tag != 1 {
			return nil
		}
		return visit(f.bytes)
	})
}

// strings1 makes a message of strings, numbered from 1.
func strings1(values ...string) []byte {
	var b []byte
	for i, v := range values {
		b = protowire.AppendTag(b, protowire.Number(i+1), protowire.BytesType)
		b = protowire.AppendString(b, v)
	}
	return b
}

func decodeContainer(b []byte) (*Container, error) {
	c := &Container{}
	return c, eachField(b, func(f field) error {
		switch f.tag {
		case 1:
			c.ID = string(f.bytes)
		case 3:
			c.Image = string(f.bytes)
		case 6:
			c.Snapshotter = string(f.bytes)
		case 7:
			c.SnapshotKey = string(f.bytes)
		}
		return nil
	})
}

// decodeProcess reads what containerd knows of a container's first process.
func decodeProcess(b []byte) (t Task, err error) {
	return t, eachField(b, func(f field) error {
		switch f.tag {
		case 3:
			t.PID = uint32(f.number)
		case 4:
			t.Status = Status(f.number)
		}
		return nil
	})
}

// mount is one that makes up the root of a container.
type mount struct {
	kind, source string
	options      []string
}

func decodeMount(b []byte) (m mount, err error) {
	return m, eachField(b, func(f field) error {
		switch f.tag {
		case 1:
			m.kind = string(f.bytes)
		case 2:
			m.source = string(f.bytes)
		case 4:
			m.options = append(m.options, string(f.bytes))
		}
		return nil
	})
}

// decodeName reads a message whose name is field 1.
func decodeName(b []byte) (name string, err error) {
	return name, eachField(b, func(f field) error {
		if f.tag == 1 {
			name = string(f.bytes)
		}
		return nil
	})
}

// decodeTarget reads the digest of what an image's name stands for.
func decodeTarget(image []byte) (digest string, err error) {
	return digest, eachField(image, func(f field) error {
		if f.tag != 3 {
			return nil
		}
		return eachField(f.bytes, func(f field) error {
			if f.tag == 2 {
				digest = string(f.bytes)
			}
			return nil
		})
	})
}
