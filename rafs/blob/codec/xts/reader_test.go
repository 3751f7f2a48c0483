package xts

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// Reader gives what Decrypt gives, wherever pieces end.
func TestReader(t *testing.T) {
	k := testKey(t, repeat("01", 16)+repeat("02", 16), "ff")
	src := make([]byte, 3*readerSize)
	for i := range src {
		src[i] = byte(i * i >> 3)
	}
	for _, near := range []int{0, readerSize, readerSize + held, 2 * readerSize, 2*readerSize + held} {
		for n := max(0, near-held-1); n <= near+held+1; n++ {
			want, wantErr := k.Decrypt(nil, src[:n])
			for name, r := range map[string]io.Reader{"whole": bytes.NewReader(src[:n]), "halves": iotest.HalfReader(bytes.NewReader(src[:n]))} {
				got, err := io.ReadAll(k.Reader(r))
				if !bytes.Equal(got, want) || !errors.Is(err, wantErr) && !errors.Is(err, ErrSize) || (err == nil) != (wantErr == nil) {
					t.Fatalf("%d bytes, %s: got %d bytes, %v, want %d, %v", n, name, len(got), err, len(want), wantErr)
				}
			}
		}
	}
	broken := errors.New("broken")
	_, err := io.ReadAll(k.Reader(io.MultiReader(bytes.NewReader(src[:100]), iotest.ErrReader(broken))))
	if !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
}
