package chunk

import (
	"errors"
	"io"
)

// Save writes all records, for LoadTable of this version of the program.
func (t *Table) Save(w io.Writer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.array.Save(w)
}

// LoadTable makes a table of what Save wrote. What comes from strangers must not
// get here: the records are taken as they are.
func LoadTable(r io.Reader, dir string) (*Table, error) {
	t := NewTable(dir)
	if err := t.array.Load(r); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}
