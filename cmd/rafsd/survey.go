package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
)

// survey is what inspect tells of an image. Sizes are in bytes.
type survey struct {
	Source     string        `json:"source"`
	Version    int           `json:"version"`
	Size       int64         `json:"bootstrap_size"`
	SHA256     string        `json:"bootstrap_sha256"`
	ChunkSize  uint32        `json:"chunk_size"`
	Compressor string        `json:"compressor"`
	Digester   string        `json:"digester"`
	Flags      []string      `json:"flags"`
	Inodes     uint64        `json:"inodes"`
	Names      uint64        `json:"names"`
	Kinds      kinds         `json:"kinds"`
	Data       dataFacts     `json:"data"`
	Blobs      []blobFacts   `json:"blobs"`
	Largest    []folderFacts `json:"largest_folders"`
	Prefetch   []string      `json:"prefetch"`
}

// kinds counts inodes by type. Links are the further names of files.
type kinds struct {
	Files    uint64 `json:"files"`
	Folders  uint64 `json:"folders"`
	Symlinks uint64 `json:"symlinks"`
	Devices  uint64 `json:"devices"`
	Fifos    uint64 `json:"fifos"`
	Sockets  uint64 `json:"sockets"`
	Links    uint64 `json:"hard_links"`
}

// dataFacts compares files with what is stored of them.
type dataFacts struct {
	// Files is the sum of all files' sizes, hard links once.
	Files uint64 `json:"file_bytes"`
	// Stored and Compressed are the sums over the chunks that files use, each
	// chunk once, uncompressed and as they lie in the blobs.
	Stored     uint64 `json:"chunk_bytes"`
	Compressed uint64 `json:"compressed_bytes"`
	Chunks     uint64 `json:"chunks"`
	// Estimated tells that Compressed is an estimate: what chunks take that are
	// compressed together, nobody says of each.
	Estimated bool `json:"compressed_bytes_estimated"`
	// Objects is the sum of the blob objects, used or not.
	Objects uint64 `json:"blob_bytes"`
}

type blobFacts struct {
	Index            uint32 `json:"index"`
	ID               string `json:"id"`
	CompressedSize   uint64 `json:"compressed_size"`
	UncompressedSize uint64 `json:"uncompressed_size"`
	Chunks           uint32 `json:"chunks"`
	UsedChunks       uint64 `json:"used_chunks"`
	UsedCompressed   uint64 `json:"used_compressed_size"`
	UsedUncompressed uint64 `json:"used_uncompressed_size"`
	Compressor       string `json:"compressor"`
	Digester         string `json:"digester"`
	Features         string `json:"features"`
}

type folderFacts struct {
	Path  string `json:"path"`
	Bytes uint64 `json:"bytes"`
	Files uint64 `json:"files"`

	parent int
}

// newSurvey looks at the whole image; top is how many of the largest folders it names.
func newSurvey(ctx context.Context, source string, im *image.Image, top int) (*survey, error) {
	super := im.Super()
	s := &survey{
		Source: source, Version: super.Version, Size: super.Size, SHA256: hex.EncodeToString(super.SHA256[:]),
		ChunkSize: super.ChunkSize, Compressor: super.Compressor.String(), Digester: super.Digester.String(),
		Flags: flagNames(super.Flags), Inodes: super.Inodes, Names: super.Names, Prefetch: []string{},
	}
	if err := s.countBlobs(ctx, im); err != nil {
		return nil, err
	}
	w := &walker{im: im, s: s, linked: map[uint64]bool{}, wanted: map[uint64]string{}}
	for _, node := range im.Prefetch() {
		w.wanted[node] = ""
	}
	if err := w.walk(ctx); err != nil {
		return nil, err
	}
	for _, node := range im.Prefetch() {
		s.Prefetch = append(s.Prefetch, w.wanted[node])
	}
	s.Largest = w.largest(top)
	return s, nil
}

// countBlobs looks at every chunk number, which the format bounds, rather than
// at every file's ranges, which a sparse file may have without end.
func (s *survey) countBlobs(ctx context.Context, im *image.Image) error {
	s.Blobs = []blobFacts{}
	for _, b := range im.Blobs() {
		f := blobFacts{
			Index: b.Index, ID: b.ID, CompressedSize: b.CompressedSize, UncompressedSize: b.UncompressedSize,
			Chunks: b.ChunkCount, Compressor: b.Compressor.String(), Digester: b.Digester.String(),
			Features: layout.Features(b.Features).String(),
		}
		for i := range b.ChunkCount {
			if i%4096 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			if c, used := im.Chunk(b.Index, i); used {
				f.UsedChunks++
				f.UsedCompressed = sum(f.UsedCompressed, uint64(c.CompressedSize))
				f.UsedUncompressed = sum(f.UsedUncompressed, uint64(c.UncompressedSize))
			}
		}
		if layout.Features(b.Features)&(layout.FeatureZran|layout.FeatureBatch) != 0 {
			f.UsedCompressed, s.Data.Estimated = dataShare(b, f.UsedChunks), true
		}
		s.Data.Objects = sum(s.Data.Objects, b.CompressedSize)
		s.Data.Chunks += f.UsedChunks
		s.Data.Stored = sum(s.Data.Stored, f.UsedUncompressed)
		s.Data.Compressed = sum(s.Data.Compressed, f.UsedCompressed)
		s.Blobs = append(s.Blobs, f)
	}
	return nil
}

// dataShare is what so many chunks of a blob take in it, if all take the same.
func dataShare(b *blob.Info, used uint64) uint64 {
	data := b.CompressedSize
	if b.MetaID == b.ID && b.ChunkInfo.Offset > 0 {
		data = min(data, b.ChunkInfo.Offset)
	}
	if used >= uint64(b.ListedChunks) {
		return data
	}
	return uint64(float64(data) * float64(used) / float64(b.ListedChunks))
}

// walker visits every name of an image. The image has been validated: its folders
// are a tree.
type walker struct {
	im      *image.Image
	s       *survey
	folders []folderFacts // parents before children
	nodes   []uint64      // of folders
	linked  map[uint64]bool
	wanted  map[uint64]string // paths of the prefetch table's nodes
}

func (w *walker) walk(ctx context.Context) error {
	w.folders, w.nodes = []folderFacts{{Path: "/", parent: -1}}, []uint64{image.Root}
	w.s.Kinds.Folders = 1
	w.note(image.Root, "/")
	for i := 0; i < len(w.folders); i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		var inner error
		err := w.im.ReadDir(w.nodes[i], 0, func(d image.Dirent) bool {
			inner = w.entry(i, d)
			return inner == nil
		})
		if err = errors.Join(err, inner); err != nil {
			return fmt.Errorf("folder %s: %w", w.folders[i].Path, err)
		}
	}
	for i := len(w.folders) - 1; i > 0; i-- {
		f, up := w.folders[i], &w.folders[w.folders[i].parent]
		up.Bytes, up.Files = sum(up.Bytes, f.Bytes), up.Files+f.Files
	}
	w.s.Data.Files = w.folders[0].Bytes
	return nil
}

// entry takes one name of the folder with this index.
func (w *walker) entry(folder int, d image.Dirent) error {
	name := string(d.Name)
	if name == "." || name == ".." {
		return nil
	}
	path := strings.TrimSuffix(w.folders[folder].Path, "/") + "/" + plain(name)
	w.note(d.Node, path)
	k := &w.s.Kinds
	switch d.Type {
	case unix.S_IFDIR:
		k.Folders++
		w.folders = append(w.folders, folderFacts{Path: path, parent: folder})
		w.nodes = append(w.nodes, d.Node)
	case unix.S_IFREG:
		return w.file(folder, d.Node)
	case unix.S_IFLNK:
		k.Symlinks++
	case unix.S_IFIFO:
		k.Fifos++
	case unix.S_IFSOCK:
		k.Sockets++
	default:
		k.Devices++
	}
	return nil
}

func (w *walker) file(folder int, node uint64) error {
	attr, err := w.im.Attr(node)
	if err != nil {
		return err
	}
	if attr.Nlink > 1 {
		if w.linked[node] {
			w.s.Kinds.Links++
			return nil
		}
		w.linked[node] = true
	}
	w.s.Kinds.Files++
	f := &w.folders[folder]
	f.Files, f.Bytes = f.Files+1, sum(f.Bytes, attr.Size)
	return nil
}

func (w *walker) note(node uint64, path string) {
	if was, ok := w.wanted[node]; ok && was == "" {
		w.wanted[node] = path
	}
}

// largest returns the folders with the most bytes in and below them, but the root.
func (w *walker) largest(top int) []folderFacts {
	folders := slices.Clone(w.folders[1:])
	slices.SortStableFunc(folders, func(a, b folderFacts) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Path, b.Path))
	})
	return folders[:max(0, min(top, len(folders)))]
}

// plain makes a name from an image fit for a terminal and for JSON. A name that is
// no printable UTF-8 is quoted as Go quotes strings.
func plain(name string) string {
	printable := utf8.ValidString(name)
	for _, r := range name {
		printable = printable && r >= ' ' && r != 0x7f && !(r >= 0x80 && r < 0xa0) && r != utf8.RuneError
	}
	if printable {
		return name
	}
	return fmt.Sprintf("%+q", name)
}

// sum adds and stops at the largest number: sizes come from the image.
func sum(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

func flagNames(f layout.Flags) []string {
	out := []string{}
	for _, n := range []struct {
		bit  layout.Flags
		name string
	}{
		{layout.FlagExplicitUIDGID, "explicit-uid-gid"},
		{layout.FlagHasXattr, "xattr"},
		{layout.FlagInlinedChunkDigest, "inlined-chunk-digest"},
		{layout.FlagTarfs, "tarfs"},
		{layout.FlagEncryptionAES128XTS, "aes-128-xts"},
	} {
		if f&n.bit != 0 {
			out = append(out, n.name)
		}
	}
	return out
}
