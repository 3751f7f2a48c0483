package codec

import "testing"

func TestADecoderThatPanicsIsAnError(t *testing.T) {
	stumble := decoder(func(dst, _ []byte) (int, error) { return int(dst[len(dst)]), nil })
	if n, err := stumble.decode(make([]byte, 4), nil); n != 0 || err == nil {
		t.Errorf("decode: %d, %v; want 0 and an error", n, err)
	}
}
