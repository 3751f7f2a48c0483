package spill

import (
	"bytes"
	"fmt"
	"testing"
)

// What was saved comes back the same, small or spilled.
func TestSave(t *testing.T) {
	for _, n := range []int{0, 1, 100, 20000} {
		var saved bytes.Buffer
		log, array := NewLog(t.TempDir(), 4096), NewArray(t.TempDir(), 12, 4096)
		records := NewRun(t.TempDir(), 1024)
		for i := range n {
			line := fmt.Appendf(nil, "record %05d", i)
			if _, err := log.Append(line); err != nil {
				t.Fatal(err)
			}
			if err := array.Append(line); err != nil {
				t.Fatal(err)
			}
			if err := records.Append(line, line[7:]); err != nil {
				t.Fatal(err)
			}
		}
		run, err := records.Finish()
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{log.Save(&saved), array.Save(&saved), run.Save(&saved)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		log2, array2 := NewLog(t.TempDir(), 4096), NewArray(t.TempDir(), 12, 4096)
		whole := saved.Bytes()
		if err := log2.Load(&saved); err != nil {
			t.Fatal(err)
		}
		if err := array2.Load(&saved); err != nil {
			t.Fatal(err)
		}
		run2, err := LoadRun(&saved, t.TempDir(), 1024)
		if err != nil {
			t.Fatal(err)
		}
		if log2.Len() != log.Len() || array2.Len() != array.Len() || saved.Len() != 0 {
			t.Errorf("%d: got %d and %d, want %d and %d", n, log2.Len(), array2.Len(), log.Len(), array.Len())
		}
		got, i := make([]byte, 12), 0
		for c := run2.Cursor(512); c.Next(); i++ {
			want := fmt.Sprintf("record %05d", i)
			if string(c.Key()) != want || string(c.Value()) != want[7:] {
				t.Fatalf("record %d: %q, %q", i, c.Key(), c.Value())
			}
			if err := array2.Get(int64(i), got); err != nil || string(got) != want {
				t.Fatalf("array %d: %q, %v", i, got, err)
			}
			if err := log2.Read(got, int64(i)*12); err != nil || string(got) != want {
				t.Fatalf("log %d: %q, %v", i, got, err)
			}
		}
		if i != n {
			t.Errorf("%d records, want %d", i, n)
		}
		for _, c := range []interface{ Close() error }{log, log2, array, array2, run, run2} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		if n > 0 {
			if err := NewLog(t.TempDir(), 4096).Load(bytes.NewReader(whole[:9])); err == nil {
				t.Error("a log that was cut off is loaded")
			}
		}
	}
}
