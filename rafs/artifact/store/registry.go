package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/blob/backend/httprange"
)

// session talks to one repository, logged in once.
type session struct {
	repo      name.Repository
	transport http.RoundTripper
	client    *http.Client
	base      string // scheme://host
}

func newSession(ctx context.Context, repo name.Repository, o artifact.Options, scopes ...string) (*session, error) {
	keychain := o.Keychain
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	auth, err := authn.Resolve(ctx, keychain, repo)
	if err != nil {
		return nil, fmt.Errorf("credentials of %s: %w", repo.RegistryStr(), err)
	}
	inner := o.RoundTripper()
	if o.UserAgent != "" {
		inner = transport.NewUserAgent(inner, o.UserAgent)
	}
	t, err := transport.NewWithContext(ctx, repo.Registry, auth, inner, scopes)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", repo.RegistryStr(), err)
	}
	return &session{
		repo: repo, transport: t, client: &http.Client{Transport: t},
		base: repo.Scheme() + "://" + repo.RegistryStr(),
	}, nil
}

func (s *session) url(part string, args ...any) string {
	return s.base + "/v2/" + s.repo.RepositoryStr() + "/" + fmt.Sprintf(part, args...)
}

// do sends a request; its answer has one of the codes.
func (s *session) do(req *http.Request, codes ...int) (*http.Response, error) {
	res, err := s.client.Do(req)
	if err != nil {
		return nil, unsigned(err)
	}
	if err := transport.CheckError(res, codes...); err != nil {
		res.Body.Close()
		return nil, err
	}
	return res, nil
}

// unsigned takes out of an error what a registry has signed: the query of the place
// that it sent us to.
func unsigned(err error) error {
	var at *url.Error
	if errors.As(err, &at) {
		if u, parseErr := url.Parse(at.URL); parseErr == nil {
			at.URL = httprange.Redact(u)
		}
	}
	return err
}

func (s *session) remote(ctx context.Context) []remote.Option {
	return []remote.Option{remote.WithTransport(s.transport), remote.WithContext(ctx)}
}

// document reads a manifest or an index. For a tag it is what the registry says.
func (s *session) document(ctx context.Context, ref name.Reference) (*Document, error) {
	desc, err := remote.Get(ref, s.remote(ctx)...)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", ref, unsigned(err))
	}
	return newDocument(v1.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest}, desc.Manifest)
}

// stat tells the size of a blob.
func (s *session) stat(ctx context.Context, digest v1.Hash) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, s.url("blobs/%s", digest), nil)
	if err != nil {
		return 0, err
	}
	res, err := s.do(req, http.StatusOK, http.StatusNotFound)
	if err != nil {
		return 0, fmt.Errorf("blob %s: %w", digest, err)
	}
	res.Body.Close()
	if res.StatusCode == http.StatusNotFound {
		return 0, fmt.Errorf("blob %s: %w in %s", digest, ErrNotFound, s.repo)
	}
	return res.ContentLength, nil
}

// Absent tells whether an image could not be opened because there is none.
func Absent(err error) bool {
	var status *transport.Error
	return errors.Is(err, fs.ErrNotExist) || errors.As(err, &status) && status.StatusCode == http.StatusNotFound
}

// registrySource is an image of a registry.
type registrySource struct {
	*session
	ref  name.Reference
	root *Document
}

// NameOf is the whole name of an image in a registry, and empty for others.
func NameOf(s Source) string {
	r, ok := s.(*registrySource)
	if !ok {
		return ""
	}
	return strings.Replace(r.ref.Name(), name.DefaultRegistry+"/", "docker.io/", 1)
}

func openRegistry(ctx context.Context, ref string, o artifact.Options) (Source, error) {
	parsed, err := o.Parse(ref)
	if err != nil {
		return nil, err
	}
	repo := parsed.Context()
	s, err := newSession(ctx, repo, o, repo.Scope(transport.PullScope))
	if err != nil {
		return nil, err
	}
	root, err := s.document(ctx, parsed)
	if err != nil {
		return nil, err
	}
	return &registrySource{session: s, ref: parsed, root: root}, nil
}

func (s *registrySource) Root() *Document { return s.root }

func (s *registrySource) Document(ctx context.Context, d v1.Descriptor) (*Document, error) {
	if err := checkDescriptor(d); err != nil {
		return nil, err
	}
	doc, err := s.document(ctx, s.repo.Digest(d.Digest.String()))
	if err != nil {
		return nil, err
	}
	return newDocument(d, doc.Raw)
}

func (s *registrySource) Stat(ctx context.Context, digest v1.Hash) (int64, error) {
	return s.stat(ctx, digest)
}

func (s *registrySource) Range(ctx context.Context, digest v1.Hash, p []byte, off int64) error {
	d := v1.Descriptor{Digest: digest, Size: off + int64(len(p))}
	if err := checkDescriptor(d); err != nil {
		return err
	}
	r, err := s.read(ctx, d, off, true)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.ReadFull(r, p)
	return err
}

// readAttempts is how often a blob is asked for when its transport breaks off
// without a byte in between.
const readAttempts = 3

func (s *registrySource) Blob(ctx context.Context, d v1.Descriptor, from int64) (io.ReadCloser, error) {
	if err := checkDescriptor(d); err != nil {
		return nil, err
	}
	return s.read(ctx, d, from, false)
}

// read asks for the bytes from an offset to the size of the descriptor, which is
// less than that of the blob if part is true.
func (s *registrySource) read(ctx context.Context, d v1.Descriptor, from int64, part bool) (io.ReadCloser, error) {
	r := &blobReader{s: s, ctx: ctx, d: d, at: from, part: part}
	if from < d.Size {
		if err := r.connect(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// blobReader reads a blob of a registry, and goes on where a connection ended.
type blobReader struct {
	s     *registrySource
	ctx   context.Context
	d     v1.Descriptor
	at    int64
	part  bool // d.Size is not that of the blob
	body  io.ReadCloser
	tries int
}

func (r *blobReader) connect() error {
	req, err := http.NewRequestWithContext(r.ctx, http.MethodGet, r.s.url("blobs/%s", r.d.Digest), nil)
	if err != nil {
		return err
	}
	if r.at > 0 || r.part {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", r.at, r.d.Size-1))
	}
	res, err := r.s.do(req, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return fmt.Errorf("blob %s: %w", r.d.Digest, err)
	}
	if r.at > 0 && res.StatusCode == http.StatusOK { // the registry knows no ranges
		if _, err := io.CopyN(io.Discard, res.Body, r.at); err != nil {
			res.Body.Close()
			return fmt.Errorf("blob %s: %w", r.d.Digest, err)
		}
	}
	r.body = res.Body
	return nil
}

func (r *blobReader) Read(p []byte) (int, error) {
	for {
		if r.body == nil {
			if r.at >= r.d.Size {
				return 0, io.EOF
			}
			if err := r.connect(); err != nil {
				return 0, err
			}
		}
		n, err := r.body.Read(p)
		r.at += int64(n)
		if n > 0 {
			r.tries = 0
		}
		if err == nil || errors.Is(err, io.EOF) && r.at >= r.d.Size {
			return n, err
		}
		r.body.Close()
		r.body = nil
		if r.tries++; r.tries >= readAttempts || r.ctx.Err() != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return n, fmt.Errorf("blob %s: byte %d of %d: %w", r.d.Digest, r.at, r.d.Size, err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

func (r *blobReader) Close() error {
	if r.body == nil {
		return nil
	}
	return r.body.Close()
}

// Referrers asks the registry, and where it does not know what referrers are, for
// the index under the tag that stands in for the answer.
func (s *registrySource) Referrers(ctx context.Context, digest v1.Hash) ([]v1.Descriptor, error) {
	index, err := remote.Referrers(s.repo.Digest(digest.String()), s.remote(ctx)...)
	var status *transport.Error
	if errors.As(err, &status) && status.StatusCode == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("referrers of %s: %w", digest, unsigned(err))
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("referrers of %s: %w", digest, err)
	}
	return m.Manifests, nil
}

func (s *registrySource) Close() error {
	s.client.CloseIdleConnections()
	return nil
}

// isDigest reports whether a reference names a digest.
func isDigest(ref name.Reference) bool { return strings.HasPrefix(ref.Identifier(), "sha256:") }
