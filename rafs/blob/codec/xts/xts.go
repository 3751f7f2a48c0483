// Package xts is AES-128-XTS (IEEE 1619-2018) as RAFS uses it: a tweak of 16
// bytes that the image names, not a sector number, and one data unit for each
// piece that is encrypted. crypto/cipher has no XTS and golang.org/x/crypto/xts
// takes whole blocks and a sector number only.
//
// XTS keeps secrets of who does not have the key; it does not keep bytes from
// being changed. What is decrypted is any bytes of the right length until
// somebody checks a digest. RAFS uses one key and one tweak for all pieces of a
// blob (nydus builder/src/core/node.rs), so that equal pieces look equal.
package xts

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes in bytes.
const (
	KeySize = 32 // one key of AES-128 for data, one for the tweak
	IVSize  = 16

	blockSize = aes.BlockSize
	// paddedSize is what anything shorter than a block is encrypted as.
	paddedSize = blockSize + len(padEnd)
	// padEnd marks padding (nydus utils/src/crypt.rs).
	padEnd = "\x78\x90"
)

// ErrKey means that both halves of a key are the same, which XTS forbids.
var ErrKey = errors.New("both halves of the key are equal")

// ErrSize means that something is too short to be XTS at all.
var ErrSize = errors.New("shorter than a block")

// Key is a key with its tweak. It is immutable.
type Key struct {
	data  cipher.Block
	tweak [blockSize]byte // encrypted already
}

// NewKey makes a key. The error is ErrKey.
func NewKey(key [KeySize]byte, iv [IVSize]byte) (*Key, error) {
	if subtle.ConstantTimeCompare(key[:KeySize/2], key[KeySize/2:]) == 1 {
		return nil, ErrKey
	}
	return newKey(key, iv), nil
}

func newKey(key [KeySize]byte, iv [IVSize]byte) *Key {
	k := &Key{data: newAES(key[:KeySize/2])}
	newAES(key[KeySize/2:]).Encrypt(k.tweak[:], iv[:])
	return k
}

func newAES(key []byte) cipher.Block {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic("xts: " + err.Error()) // the size is a constant
	}
	return b
}

// Size is how many bytes n bytes are when encrypted: as many, but never less than
// a block, and 18 where there is less.
func Size(n int) int {
	if n < blockSize {
		return paddedSize
	}
	return n
}

// Encrypt encrypts src, padded if it is shorter than a block, and returns the
// result, of Size(len(src)) bytes: in dst's memory if it has room, else in new
// memory. dst may begin where src does, and must not overlap it in another way.
// It panics if src is empty: there is no padding for that.
func (k *Key) Encrypt(dst, src []byte) []byte {
	if len(src) == 0 {
		panic("xts: nothing to encrypt")
	}
	var padded [paddedSize]byte
	if len(src) < blockSize {
		n := copy(padded[:], src)
		for i := n; i < blockSize; i++ {
			padded[i] = byte(blockSize - n)
		}
		copy(padded[blockSize:], padEnd)
		src = padded[:]
	}
	dst = room(dst, len(src))
	t := k.tweak
	whole := len(src) &^ (blockSize - 1)
	for i := 0; i < whole; i += blockSize {
		k.encrypt(dst[i:i+blockSize], src[i:i+blockSize], &t)
		double(&t)
	}
	if rest := len(src) - whole; rest > 0 {
		// Ciphertext stealing: the short block takes the front of the one before it,
		// which is encrypted again with the short one in front.
		var last [blockSize]byte
		copy(last[:], dst[whole-blockSize:whole])
		copy(last[:rest], src[whole:])
		copy(dst[whole:], dst[whole-blockSize:whole-blockSize+rest])
		k.encrypt(dst[whole-blockSize:whole], last[:], &t)
	}
	return dst
}

// Decrypt is the opposite of Encrypt but for padding, which it leaves where it is:
// only the caller may know how long the bytes are to be. See Trim. The error is
// ErrSize.
func (k *Key) Decrypt(dst, src []byte) ([]byte, error) {
	if len(src) < blockSize {
		return nil, fmt.Errorf("aes128xts: %d bytes: %w", len(src), ErrSize)
	}
	dst = room(dst, len(src))
	t := k.tweak
	k.decryptEnd(dst, src, &t)
	return dst, nil
}

// decryptEnd decrypts what a data unit ends with, from the block of tweak t on.
func (k *Key) decryptEnd(dst, src []byte, t *[blockSize]byte) {
	rest := len(src) % blockSize
	whole := len(src) - rest
	if rest > 0 {
		whole -= blockSize
	}
	for i := 0; i < whole; i += blockSize {
		k.decrypt(dst[i:i+blockSize], src[i:i+blockSize], t)
		double(t)
	}
	if rest > 0 {
		// The last two are undone in dst, so that nothing escapes to the heap; it may
		// be where src is.
		next := *t
		double(&next)
		var short [blockSize]byte
		copy(short[:], src[whole+blockSize:])
		last := dst[whole : whole+blockSize]
		k.decrypt(last, src[whole:whole+blockSize], &next)
		copy(dst[whole+blockSize:], last[:rest])
		copy(last, short[:rest])
		k.decrypt(last, last, t)
	}
}

// Trim takes the padding off p, which was decrypted, if it has one: that of 18
// bytes which end as padding does. Some 18 bytes that never were padded look so,
// too (one in 1<<24, or by will); nydus has no way to tell these, either.
func Trim(p []byte) []byte {
	if len(p) != paddedSize || string(p[blockSize:]) != padEnd {
		return p
	}
	n := int(p[blockSize-1])
	if n == 0 || n >= blockSize {
		return p
	}
	for _, c := range p[blockSize-n : blockSize] {
		if int(c) != n {
			return p
		}
	}
	return p[:blockSize-n]
}

// encrypt encrypts one block under tweak t. dst and src may be the same.
func (k *Key) encrypt(dst, src []byte, t *[blockSize]byte) {
	subtle.XORBytes(dst, src, t[:])
	k.data.Encrypt(dst, dst)
	subtle.XORBytes(dst, dst, t[:])
}

func (k *Key) decrypt(dst, src []byte, t *[blockSize]byte) {
	subtle.XORBytes(dst, src, t[:])
	k.data.Decrypt(dst, dst)
	subtle.XORBytes(dst, dst, t[:])
}

// double multiplies a tweak by x in GF(2^128), little-endian (IEEE 1619 5.2).
func double(t *[blockSize]byte) {
	lo, hi := binary.LittleEndian.Uint64(t[:8]), binary.LittleEndian.Uint64(t[8:])
	carry := -(hi >> 63) & 0x87
	binary.LittleEndian.PutUint64(t[8:], hi<<1|lo>>63)
	binary.LittleEndian.PutUint64(t[:8], lo<<1^carry)
}

func room(dst []byte, n int) []byte {
	if cap(dst) < n {
		return make([]byte, n)
	}
	return dst[:n]
}
