// Package verify says whether a RAFS image is what it claims to be: that its
// manifest, configuration and bootstrap layer keep to the rules by which nydus'
// tools know such images, that its bootstrap breaks no rule of the format, that its
// blobs have the bytes that their digests say, and, where it has a source, that
// both show the same files with the same bytes.
//
// It trusts neither image. Everything is read with the bounds of the packages that
// read it elsewhere; nothing is unpacked. Both trees are compared in the order of
// their paths, so memory does not grow with the images; blobs lie in the work
// folder while they are looked at. It changes nothing.
package verify

import (
	"context"
	"errors"
	"fmt"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/check"
	"github.com/rafsd/rafsd/rafs/image"
)

// Options say what to verify.
type Options struct {
	// Target is the RAFS image.
	Target store.Source
	// Source is the OCI image that it was made of; nil if there is none to compare.
	Source store.Source
	// Platform picks the images out of indexes.
	Platform v1.Platform
	// MultiPlatform wants an index that has the OCI image and the RAFS image.
	MultiPlatform bool
	// Backend has the blobs of an image whose manifest does not list them; nil if
	// they are where the manifest is.
	Backend backend.Backend
	// SkipData leaves the blobs alone: neither their digests nor the bytes of files
	// are looked at, only how long they are.
	SkipData bool
	// Limits of each layer of the source.
	Limits tree.Limits
	// WorkDir takes blobs while they are looked at; os.TempDir by default. It needs
	// room for the blobs of the target.
	WorkDir string
	// Max is how many findings are listed; 100 by default. All are counted.
	Max int
	// Progress is told how it goes, if not nil.
	Progress func(Event)
}

// Event is news of a verification.
type Event struct {
	// What is looked at: "blob", "layer" or "files".
	What   string
	Digest string // of a blob or a layer
	// Done and Total are bytes; for files Total is 0.
	Done, Total int64
	Over        bool
}

// Part is what a finding is about.
type Part string

// The parts of an image.
const (
	Manifest  Part = "manifest"
	Config    Part = "config"
	Bootstrap Part = "bootstrap"
	Blob      Part = "blob"
	Files     Part = "files"
)

// Finding is something that is wrong.
type Finding struct {
	Part  Part   `json:"part"`
	Where string `json:"where"` // a path, a digest, a field
	What  string `json:"what"`  // what is there and what was wanted
}

func (f Finding) String() string { return string(f.Part) + " " + f.Where + ": " + f.What }

// Report is what was found and how much was looked at.
type Report struct {
	Target   string    `json:"target"` // digest of the manifest
	Source   string    `json:"source,omitempty"`
	Version  int       `json:"fs_version"` // 5 or 6
	Findings []Finding `json:"findings"`
	// More is how many findings there are beyond those listed.
	More int `json:"more_findings"`
	// Blobs were read whole, of so many bytes.
	Blobs     int   `json:"blobs"`
	BlobBytes int64 `json:"blob_bytes"`
	// Entries were compared with the source, among them Files with the Bytes of
	// their content.
	Entries int   `json:"entries_compared"`
	Files   int   `json:"files_compared"`
	Bytes   int64 `json:"bytes_compared"`
}

// OK tells whether nothing was found.
func (r *Report) OK() bool { return len(r.Findings) == 0 }

// verification is one run of Image.
type verification struct {
	o      Options
	dir    string // for the bootstrap and the blobs
	report Report

	target, source *pulled
	im             *image.Image // nil if the bootstrap cannot be opened
	ids            map[string]bool
}

// pulled is the manifest and the configuration of an image.
type pulled struct {
	src      store.Source
	doc      *store.Document
	manifest *v1.Manifest
	config   []byte
	file     *v1.ConfigFile
}

func (v *verification) find(p Part, where, format string, args ...any) {
	if len(v.report.Findings) == v.o.Max {
		v.report.More++
		return
	}
	v.report.Findings = append(v.report.Findings, Finding{p, where, fmt.Sprintf(format, args...)})
}

func (v *verification) tell(e Event) {
	if v.o.Progress != nil {
		v.o.Progress(e)
	}
}

// Image verifies an image. What is wrong with it is in the report; the error says
// that something could not be looked at at all.
func Image(ctx context.Context, o Options) (*Report, error) {
	if o.Max <= 0 {
		o.Max = 100
	}
	if o.Platform.OS == "" || o.Platform.Architecture == "" {
		o.Platform = artifact.Options{Platform: o.Platform}.WantPlatform()
	}
	dir, err := os.MkdirTemp(o.WorkDir, "rafsd-verify-*")
	if err != nil {
		return nil, fmt.Errorf("work folder: %w", err)
	}
	defer os.RemoveAll(dir)
	v := &verification{o: o, dir: dir, report: Report{Findings: []Finding{}}}
	if err := v.run(ctx); err != nil {
		return nil, err
	}
	return &v.report, nil
}

func (v *verification) run(ctx context.Context) error {
	var err error
	if v.target, err = pull(ctx, v.o.Target, v.o.Platform, artifact.Marked); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	v.report.Target = v.target.doc.Digest.String()
	if v.o.Source != nil {
		notRAFS := func(d v1.Descriptor) bool { return !artifact.Marked(d) }
		if v.source, err = pull(ctx, v.o.Source, v.o.Platform, notRAFS); err != nil {
			return fmt.Errorf("source: %w", err)
		}
		v.report.Source = v.source.doc.Digest.String()
	}
	if _, ok := artifact.Bootstrap(v.target.manifest); !ok {
		return fmt.Errorf("target %s: %w: its last layer has no annotation %s", v.target.doc.Digest, artifact.ErrNotRAFS, artifact.AnnotationBootstrap)
	}
	if err := v.rules(); err != nil {
		return err
	}
	if err := v.bootstrap(ctx); err != nil {
		return err
	}
	if v.im == nil {
		return nil // its finding is in the report
	}
	defer v.im.Close()
	return v.contents(ctx)
}

// contents looks at blobs and files.
func (v *verification) contents(ctx context.Context) error {
	blobs, err := v.blobs(ctx)
	if err != nil {
		return err
	}
	if blobs != nil {
		defer blobs.Close()
	}
	if v.source == nil {
		return nil
	}
	return v.compare(ctx, blobs)
}

func pull(ctx context.Context, src store.Source, platform v1.Platform, prefer func(v1.Descriptor) bool) (*pulled, error) {
	doc, m, err := store.Image(ctx, src, platform, prefer)
	if err != nil {
		return nil, err
	}
	p := &pulled{src: src, doc: doc, manifest: m}
	if p.config, err = store.Bytes(ctx, src, m.Config, artifact.MaxConfig); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if p.file, err = parseConfig(p.config); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return p, nil
}

// violations turns what rafs/check says into findings.
func (v *verification) violations(ctx context.Context, path string) error {
	err := check.Image(ctx, path)
	var broken *check.Error
	if !errors.As(err, &broken) {
		return err
	}
	for _, one := range broken.Violations {
		v.find(Bootstrap, one.Where, "%s", one.What)
	}
	v.report.More += broken.More
	return nil
}
