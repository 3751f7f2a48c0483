package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rafsd/rafsd/rafs/artifact"
)

// Platforms are those of an index to take. The zero value takes all.
type Platforms []v1.Platform

// ParsePlatforms reads a list such as "linux/amd64,linux/arm64/v8".
func ParsePlatforms(list string) (Platforms, error) {
	var out Platforms
	for _, s := range strings.Split(list, ",") {
		p, err := v1.ParsePlatform(strings.TrimSpace(s))
		if err != nil || p.Architecture == "" {
			return nil, fmt.Errorf("want OS/ARCH[/VARIANT], got %q", s)
		}
		out = append(out, *p)
	}
	return out, nil
}

// Has tells whether the image of a descriptor is wanted. Marks in the features of
// a platform, such as that of RAFS images, do not count.
func (p Platforms) Has(d v1.Descriptor) bool {
	if len(p) == 0 {
		return true
	}
	if d.Platform == nil {
		return false
	}
	have := *d.Platform
	have.OSFeatures, have.Features = nil, nil
	for _, want := range p {
		if have.Satisfies(want) {
			return true
		}
	}
	return false
}

func (p Platforms) String() string {
	var names []string
	for _, one := range p {
		names = append(names, one.String())
	}
	return strings.Join(names, ", ")
}

// choose returns the descriptors of an index that are wanted.
func (p Platforms) choose(doc *Document, index *v1.IndexManifest) ([]v1.Descriptor, error) {
	var chosen []v1.Descriptor
	var offered []string
	for _, d := range index.Manifests {
		if p.Has(d) {
			chosen = append(chosen, d)
		}
		if d.Platform != nil {
			offered = append(offered, d.Platform.String())
		}
	}
	if len(chosen) == 0 && len(index.Manifests) == 1 && index.Manifests[0].Platform == nil {
		return index.Manifests, nil
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("index %s: no image for %s; there is %q", doc.Digest, p, offered)
	}
	return chosen, nil
}

// Reindex makes an index of other manifests that is else the same, with all that
// it says and we do not know.
func Reindex(doc *Document, manifests []v1.Descriptor) (*Document, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(doc.Raw, &fields); err != nil {
		return nil, fmt.Errorf("index %s: %w", doc.Digest, err)
	}
	var err error
	if fields["manifests"], err = json.Marshal(manifests); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(fields) // sorts the keys
	if err != nil {
		return nil, err
	}
	return NewDocument(doc.MediaType, raw), nil
}

// Image finds the image of a platform below the root of a source: in an index the
// first that prefer likes, or else the first.
func Image(ctx context.Context, s Source, want v1.Platform, prefer func(v1.Descriptor) bool) (*Document, *v1.Manifest, error) {
	doc := s.Root()
	for depth := 0; doc.MediaType.IsIndex(); depth++ {
		if depth > maxDepth {
			return nil, nil, fmt.Errorf("%s: more than %d indexes deep", doc.Digest, maxDepth)
		}
		index, err := doc.Index()
		if err != nil {
			return nil, nil, err
		}
		d, err := artifact.Choose(index, want, prefer)
		if err != nil {
			return nil, nil, fmt.Errorf("index %s: %w", doc.Digest, err)
		}
		if doc, err = s.Document(ctx, d); err != nil {
			return nil, nil, err
		}
	}
	m, err := doc.Manifest()
	return doc, m, err
}
