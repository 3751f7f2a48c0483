package xts

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// testKey makes a key of hex, also one that NewKey refuses.
func testKey(t testing.TB, key, iv string) *Key {
	t.Helper()
	return newKey([KeySize]byte(unhex(t, key)), [IVSize]byte(append(unhex(t, iv), make([]byte, IVSize)...)))
}

func repeat(s string, n int) string { return string(bytes.Repeat([]byte(s), n)) }

// IEEE 1619-2007, annex B; data unit numbers are little-endian tweaks.
func TestVectors(t *testing.T) {
	for _, v := range []struct{ name, key, iv, plain, want string }{
		{"1", repeat("00", 32), "00", repeat("00", 32),
			"917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e"},
		{"2", repeat("11", 16) + repeat("22", 16), "3333333333", repeat("44", 32),
			"c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0"},
		{"3", "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0" + repeat("22", 16), "3333333333", repeat("44", 32),
			"af85336b597afc1a900b2eb21ec949d292df4c047e0b21532186a5971a227a89"},
		{"15", "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0bfbebdbcbbbab9b8b7b6b5b4b3b2b1b0", "9a78563412",
			"000102030405060708090a0b0c0d0e0f10", "6c1625db4671522d3d7599601de7ca09ed"},
		{"16", "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0bfbebdbcbbbab9b8b7b6b5b4b3b2b1b0", "9a78563412",
			"000102030405060708090a0b0c0d0e0f1011", "d069444b7a7e0cab09e24447d24deb1fedbf"},
		{"17", "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0bfbebdbcbbbab9b8b7b6b5b4b3b2b1b0", "9a78563412",
			"000102030405060708090a0b0c0d0e0f101112", "e5df1351c0544ba1350b3363cd8ef4beedbf9d"},
		{"18", "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0bfbebdbcbbbab9b8b7b6b5b4b3b2b1b0", "9a78563412",
			"000102030405060708090a0b0c0d0e0f10111213", "9d84c813f719aa2c7be3f66171c7c5c2edbf9dac"},
	} {
		t.Run(v.name, func(t *testing.T) {
			k := testKey(t, v.key, v.iv)
			plain, want := unhex(t, v.plain), unhex(t, v.want)
			if got := k.Encrypt(nil, plain); !bytes.Equal(got, want) {
				t.Errorf("encrypted: got %x, want %x", got, want)
			}
			if got, err := k.Decrypt(nil, want); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("decrypted: got %x, %v, want %x", got, err, plain)
			}
		})
	}
}

func TestRoundTrip(t *testing.T) {
	k := testKey(t, repeat("01", 16)+repeat("02", 16), "ff")
	src := make([]byte, 100)
	rand.Read(src)
	for n := 1; n <= len(src); n++ {
		plain := src[:n]
		enc := k.Encrypt(nil, plain)
		if len(enc) != Size(n) {
			t.Errorf("%d bytes became %d, want %d", n, len(enc), Size(n))
		}
		dec, err := k.Decrypt(nil, enc)
		if err != nil {
			t.Fatal(err)
		}
		if got := Trim(dec); !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: got %x, want %x", n, got, plain)
		}
		// In place.
		room := append(make([]byte, 0, 200), plain...)
		if got := k.Encrypt(room[:0], room); !bytes.Equal(got, enc) {
			t.Errorf("%d bytes in place: got %x, want %x", n, got, enc)
		}
		room = append(room[:0], enc...)
		if got, err := k.Decrypt(room[:0], room); err != nil || !bytes.Equal(got, dec) || &got[0] != &room[0] {
			t.Errorf("%d bytes decrypted in place: got %x, %v, want %x", n, got, err, dec)
		}
	}
}

// TestPadding has the bytes of nydus utils/src/crypt.rs for short data.
func TestPadding(t *testing.T) {
	k := testKey(t, repeat("01", 16)+repeat("02", 16), "ff")
	dec, err := k.Decrypt(nil, k.Encrypt(nil, []byte("abc")))
	if want := "abc" + repeat("\x0d", 13) + "\x78\x90"; err != nil || string(dec) != want {
		t.Errorf("got %q, %v, want %q", dec, err, want)
	}
	for _, p := range []string{
		repeat("\x10", 16) + "\x78\x90",                      // nothing was encrypted
		repeat("x", 15) + "\x00" + "\x78\x90",                // no padding in it
		repeat("x", 13) + "\x03\x02\x03" + "\x78\x90",        // padding of different bytes
		repeat("x", 15) + "\x01" + "\x78\x91",                // another end
		repeat("x", 15) + "\x01" + "\x78\x90" + "\x78\x90",   // longer
		repeat("x", 14) + "\x02\x02" + "\x78",                // shorter
		repeat("x", 5), "", repeat("x", 14) + "\x02\x02\x78", // not of the size
	} {
		if got := Trim([]byte(p)); string(got) != p {
			t.Errorf("Trim(%q) = %q, want it left alone", p, got)
		}
	}
}

func TestRefused(t *testing.T) {
	if _, err := NewKey([KeySize]byte{}, [IVSize]byte{}); err != ErrKey {
		t.Errorf("key of equal halves: %v, want %v", err, ErrKey)
	}
	k := testKey(t, repeat("01", 16)+repeat("02", 16), "ff")
	for _, n := range []int{0, 1, 15} {
		if _, err := k.Decrypt(nil, make([]byte, n)); !errors.Is(err, ErrSize) {
			t.Errorf("decrypt of %d bytes: %v, want %v", n, err, ErrSize)
		}
	}
}

func TestDoesNotAllocate(t *testing.T) {
	k := testKey(t, repeat("01", 16)+repeat("02", 16), "ff")
	buf := make([]byte, 4096+7)
	n := testing.AllocsPerRun(10, func() {
		buf = k.Encrypt(buf[:0], buf)
		buf, _ = k.Decrypt(buf[:0], buf)
	})
	if n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("key"), []byte("a"))
	f.Add([]byte("key"), bytes.Repeat([]byte("abcdefg"), 9))
	f.Fuzz(func(t *testing.T, seed, plain []byte) {
		var key [KeySize]byte
		copy(key[:], seed)
		key[KeySize-1] ^= 0x55
		k := newKey(key, [IVSize]byte{1})
		if len(plain) == 0 {
			return
		}
		enc := k.Encrypt(nil, plain)
		dec, err := k.Decrypt(nil, enc)
		if err != nil || !bytes.Equal(dec[:min(len(plain), len(dec))], plain) {
			t.Fatalf("got %x, %v, want %x", dec, err, plain)
		}
		if len(plain) < blockSize && !bytes.Equal(Trim(dec), plain) {
			t.Fatalf("trimmed %x, want %x", Trim(dec), plain)
		}
	})
}

func BenchmarkDecrypt(b *testing.B) {
	k := testKey(b, repeat("01", 16)+repeat("02", 16), "ff")
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		buf, _ = k.Decrypt(buf[:0], buf)
	}
}
