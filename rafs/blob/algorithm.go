package blob

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/zeebo/blake3"
)

// Compressor is a compression algorithm by its number on disk
// (nydus utils/src/compress/mod.rs).
type Compressor uint32

// The compressors of the format.
const (
	CompressorNone     Compressor = 0
	CompressorLZ4Block Compressor = 1
	CompressorGzip     Compressor = 2
	CompressorZstd     Compressor = 3
)

var compressorNames = [...]string{"none", "lz4_block", "gzip", "zstd"}

// Valid reports whether the format knows c.
func (c Compressor) Valid() bool { return int(c) < len(compressorNames) }

func (c Compressor) String() string {
	if c.Valid() {
		return compressorNames[c]
	}
	return fmt.Sprintf("compressor(%d)", uint32(c))
}

// ParseCompressor finds a compressor by the name that nydus-image gives it.
func ParseCompressor(name string) (Compressor, error) {
	for i, n := range compressorNames {
		if n == name {
			return Compressor(i), nil
		}
	}
	return 0, fmt.Errorf("compressor %q: want one of %q", name, compressorNames)
}

// Digester is a digest algorithm by its number on disk (nydus utils/src/digest.rs).
type Digester uint32

// The digesters of the format.
const (
	DigesterBlake3 Digester = 0
	DigesterSHA256 Digester = 1
)

var digesterNames = [...]string{"blake3", "sha256"}

// Valid reports whether the format knows d.
func (d Digester) Valid() bool { return int(d) < len(digesterNames) }

func (d Digester) String() string {
	if d.Valid() {
		return digesterNames[d]
	}
	return fmt.Sprintf("digester(%d)", uint32(d))
}

// ParseDigester finds a digester by the name that nydus-image gives it.
func ParseDigester(name string) (Digester, error) {
	for i, n := range digesterNames {
		if n == name {
			return Digester(i), nil
		}
	}
	return 0, fmt.Errorf("digester %q: want one of %q", name, digesterNames)
}

// Sum digests p. It panics on a digester that is not Valid.
func (d Digester) Sum(p []byte) Digest {
	switch d {
	case DigesterBlake3:
		return blake3.Sum256(p)
	case DigesterSHA256:
		return sha256.Sum256(p)
	}
	panic("blob: " + d.String())
}

// Cipher is an encryption algorithm by its number on disk (nydus
// utils/src/crypt.rs).
type Cipher uint32

// The ciphers that a reader may meet; nydus has numbers for more, which it
// refuses itself.
const (
	CipherNone      Cipher = 0
	CipherAES128XTS Cipher = 1
)

var cipherNames = [...]string{"none", "aes128xts"}

// Valid reports whether chunks can be encrypted with c, or are not at all.
func (c Cipher) Valid() bool { return int(c) < len(cipherNames) }

func (c Cipher) String() string {
	if c.Valid() {
		return cipherNames[c]
	}
	return fmt.Sprintf("cipher(%d)", uint32(c))
}

// Key is the key and the IV of an encrypted blob, as the blob table has them. It
// never shows itself in a log.
type Key struct {
	XTS [32]byte
	IV  [16]byte
}

func (Key) String() string   { return "key" }
func (Key) GoString() string { return "key" }

// Digest is the digest of one chunk's uncompressed bytes.
type Digest [32]byte

func (d Digest) String() string { return hex.EncodeToString(d[:]) }
