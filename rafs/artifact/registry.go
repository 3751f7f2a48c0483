package artifact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"runtime"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/rafs/blob"
)

// Options say how to reach a registry. The zero value uses the user's docker
// credentials, the system's certificates and the platform that runs this.
type Options struct {
	// Keychain has the credentials; authn.DefaultKeychain if nil.
	Keychain authn.Keychain
	// Transport carries requests; remote.DefaultTransport if nil.
	Transport http.RoundTripper
	// RootCAs are the authorities to trust where Transport is nil; the system's if nil.
	RootCAs *x509.CertPool
	// PlainHTTP allows http to any host. A host on the loopback may always use it.
	PlainHTTP bool
	// Platform is what to take from an index; linux and GOARCH if empty.
	Platform v1.Platform
	// Insecure takes any certificate that a registry shows.
	Insecure bool
	// UserAgent is sent with each request if set.
	UserAgent string

	documents *documents
}

// WantPlatform is the platform to take from an index.
func (o Options) WantPlatform() v1.Platform {
	p := o.Platform
	if p.OS == "" {
		p.OS = "linux"
	}
	if p.Architecture == "" {
		p.Architecture = runtime.GOARCH
	}
	return p
}

// Parse reads a reference, the way docker does: a name without a registry is
// one of Docker Hub, a reference without a tag means "latest".
func (o Options) Parse(ref string) (name.Reference, error) {
	var opts []name.Option
	if o.PlainHTTP {
		opts = append(opts, name.Insecure)
	}
	r, err := name.ParseReference(ref, opts...)
	if err != nil {
		return nil, fmt.Errorf("reference %q: %w", ref, err)
	}
	return r, nil
}

// Remote turns the options into those of go-containerregistry.
func (o Options) Remote() []remote.Option {
	keychain := o.Keychain
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	opts := []remote.Option{
		remote.WithAuthFromKeychain(keychain),
		remote.WithTransport(o.RoundTripper()),
	}
	if o.UserAgent != "" {
		opts = append(opts, remote.WithUserAgent(o.UserAgent))
	}
	return opts
}

// RoundTripper carries requests as the options say, bounded and guarded, without
// credentials.
func (o Options) RoundTripper() http.RoundTripper { return &guard{o.transport(), o.PlainHTTP} }

func (o Options) transport() http.RoundTripper {
	if o.Transport != nil {
		return o.Transport
	}
	base, ok := remote.DefaultTransport.(*http.Transport)
	if o.RootCAs == nil && !o.Insecure || !ok {
		return remote.DefaultTransport
	}
	t := base.Clone()
	t.TLSClientConfig = &tls.Config{RootCAs: o.RootCAs, MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.Insecure}
	return t
}

// Manifest is a manifest and where it was found.
type Manifest struct {
	*v1.Manifest
	Raw    []byte
	Digest v1.Hash
	Repo   name.Repository
}

// FetchManifest fetches the manifest of a reference, verified by its digest. From
// an index it takes one of the platform; where prefer is not nil, one that prefer
// likes if there is one.
func FetchManifest(ctx context.Context, ref name.Reference, o Options, prefer func(v1.Descriptor) bool) (*Manifest, error) {
	desc, err := get(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	if desc.MediaType.IsIndex() {
		index, err := v1.ParseIndexManifest(bytes.NewReader(desc.Manifest))
		if err != nil {
			return nil, fmt.Errorf("index %s: %w", ref, err)
		}
		chosen, err := Choose(index, o.WantPlatform(), prefer)
		if err != nil {
			return nil, fmt.Errorf("index %s: %w", ref, err)
		}
		if desc, err = get(ctx, ref.Context().Digest(chosen.Digest.String()), o); err != nil {
			return nil, err
		}
	}
	if !desc.MediaType.IsImage() {
		return nil, fmt.Errorf("%s: media type %q, want an image manifest", ref, desc.MediaType)
	}
	m, err := v1.ParseManifest(bytes.NewReader(desc.Manifest))
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", ref, err)
	}
	return &Manifest{Manifest: m, Raw: desc.Manifest, Digest: desc.Digest, Repo: ref.Context()}, nil
}

// get fetches an index or a manifest, unless it is asked for by digest and kept.
func get(ctx context.Context, ref name.Reference, o Options) (*remote.Descriptor, error) {
	if kept := o.kept(ref); kept != nil {
		return kept, nil
	}
	desc, err := remote.Get(ref, append(o.Remote(), remote.WithContext(ctx))...)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", ref, err)
	}
	if len(desc.Manifest) > MaxManifest {
		return nil, fmt.Errorf("manifest %s: %d bytes, limit %d", ref, len(desc.Manifest), MaxManifest)
	}
	switch {
	case desc.MediaType.IsIndex():
		o.documents.add(desc.Digest, indexDocument, desc.Manifest)
	case desc.MediaType.IsImage():
		o.documents.add(desc.Digest, imageDocument, desc.Manifest)
	}
	return desc, nil
}

// kept finds the document of a reference by digest. The media type is that of the
// kind that it was served as.
func (o Options) kept(ref name.Reference) *remote.Descriptor {
	by, ok := ref.(name.Digest)
	if !ok {
		return nil
	}
	digest, err := v1.NewHash(by.DigestStr())
	if err != nil {
		return nil
	}
	mediaType := types.OCIManifestSchema1
	data, ok := o.documents.load(digest, imageDocument, MaxManifest)
	if !ok {
		mediaType = types.OCIImageIndex
		data, ok = o.documents.load(digest, indexDocument, MaxManifest)
	}
	if !ok {
		return nil
	}
	return &remote.Descriptor{
		Descriptor: v1.Descriptor{MediaType: mediaType, Digest: digest, Size: int64(len(data))},
		Manifest:   data,
	}
}

// Choose takes the image of a platform from an index: the first that prefer
// likes, or else the first.
func Choose(index *v1.IndexManifest, want v1.Platform, prefer func(v1.Descriptor) bool) (v1.Descriptor, error) {
	var found *v1.Descriptor
	var offered []string
	for i, d := range index.Manifests {
		if !d.MediaType.IsImage() || d.Platform == nil {
			continue
		}
		offered = append(offered, d.Platform.String())
		p := *d.Platform
		p.OSFeatures, p.Features = nil, nil
		if !p.Satisfies(want) {
			continue
		}
		if prefer == nil || prefer(d) {
			return d, nil
		}
		if found == nil {
			found = &index.Manifests[i]
		}
	}
	if found == nil && len(index.Manifests) == 1 && index.Manifests[0].MediaType.IsImage() && index.Manifests[0].Platform == nil {
		found = &index.Manifests[0]
	}
	if found == nil {
		return v1.Descriptor{}, fmt.Errorf("no image for %s; there is %q", want.String(), offered)
	}
	return *found, nil
}

// FetchBlob reads a blob of at most limit bytes into memory, verified.
func FetchBlob(ctx context.Context, repo name.Repository, d v1.Descriptor, limit int64, o Options) ([]byte, error) {
	if d.Size < 0 || d.Size > limit {
		return nil, fmt.Errorf("%s: %d bytes, limit %d", d.Digest, d.Size, limit)
	}
	r, err := OpenBlob(ctx, repo, d, o)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data := make([]byte, d.Size)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, fmt.Errorf("%s: %w", d.Digest, err)
	}
	return data, r.Verify()
}

// Blob is a stream of a blob's bytes. They are what they should be once Verify
// has returned nil.
type Blob struct {
	r    io.ReadCloser
	want v1.Descriptor
	hash interface {
		io.Writer
		Sum([]byte) []byte
	}
	left int64
}

// OpenBlob starts to read a blob, whatever its size.
func OpenBlob(ctx context.Context, repo name.Repository, d v1.Descriptor, o Options) (*Blob, error) {
	layer, err := remote.Layer(repo.Digest(d.Digest.String()), append(o.Remote(), remote.WithContext(ctx))...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Digest, err)
	}
	r, err := layer.Compressed()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Digest, err)
	}
	return NewBlob(r, d)
}

// NewBlob verifies what it reads from r against a descriptor. It closes r.
func NewBlob(r io.ReadCloser, d v1.Descriptor) (*Blob, error) {
	if d.Digest.Algorithm != "sha256" || len(d.Digest.Hex) != 2*sha256.Size || d.Size < 0 {
		r.Close()
		return nil, fmt.Errorf("descriptor %s of %d bytes: want a sha256 and a size", d.Digest, d.Size)
	}
	return &Blob{r: r, want: d, hash: sha256.New(), left: d.Size}, nil
}

// Read reads up to the size that the descriptor says, and no further.
func (b *Blob) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	b.hash.Write(p[:n])
	if err == io.EOF && b.left > 0 {
		err = fmt.Errorf("%w: %d of %d bytes missing", io.ErrUnexpectedEOF, b.left, b.want.Size)
	}
	return n, err
}

// Verify reads what is left and compares size and digest.
func (b *Blob) Verify() error {
	if _, err := io.Copy(io.Discard, b); err != nil {
		return fmt.Errorf("%s: %w", b.want.Digest, err)
	}
	var one [1]byte
	if n, _ := io.ReadFull(b.r, one[:]); n > 0 {
		return fmt.Errorf("%s: more than %d bytes", b.want.Digest, b.want.Size)
	}
	if got := hex.EncodeToString(b.hash.Sum(nil)); got != b.want.Digest.Hex {
		return fmt.Errorf("%s: %w, got sha256:%s", b.want.Digest, blob.ErrDigest, got)
	}
	return nil
}

// Close ends the stream.
func (b *Blob) Close() error { return b.r.Close() }
