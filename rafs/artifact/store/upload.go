package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/rafs/artifact"
)

// Push says how to write to a place.
type Push struct {
	// From is where the blobs come from, if it is known: a registry that has them
	// in another repository need not be sent them.
	From Source
	// ChunkSize is how many bytes of a blob go into one request; 0 for all of it.
	ChunkSize int64
	// Retries are the further tries of a request that failed on its way; 3 by
	// default, none if negative. RetryDelay lies between them; a second by default.
	Retries    int
	RetryDelay time.Duration
	// Name is what an archive or a layout calls the image, where it has no tag.
	Name string
}

func (p *Push) setDefaults() {
	if p.Retries == 0 {
		p.Retries = 3
	}
	if p.RetryDelay == 0 {
		p.RetryDelay = time.Second
	}
}

// registryTarget is a repository and a tag of it.
type registryTarget struct {
	*session
	tag    name.Reference
	push   Push
	mounts string // repository of the same registry that has the blobs
	pusher *remote.Pusher
}

func newRegistryTarget(ctx context.Context, ref string, o artifact.Options, p Push) (Target, error) {
	parsed, err := o.Parse(ref)
	if err != nil {
		return nil, err
	}
	if isDigest(parsed) {
		return nil, fmt.Errorf("reference %q: want a tag, not a digest", ref)
	}
	p.setDefaults()
	t := &registryTarget{tag: parsed, push: p}
	repo := parsed.Context()
	scopes := []string{repo.Scope(transport.PushScope)}
	if from, ok := p.From.(*registrySource); ok && from.repo.RegistryStr() == repo.RegistryStr() && from.repo.RepositoryStr() != repo.RepositoryStr() {
		t.mounts = from.repo.RepositoryStr()
		scopes = append(scopes, from.repo.Scope(transport.PullScope))
	}
	if t.session, err = newSession(ctx, repo, o, scopes...); err != nil {
		return nil, err
	}
	if t.pusher, err = remote.NewPusher(remote.WithTransport(t.transport)); err != nil {
		return nil, fmt.Errorf("reference %q: %w", ref, err)
	}
	return t, nil
}

func (t *registryTarget) Reference(digest v1.Hash) string {
	return t.repo.Digest(digest.String()).String()
}

func (t *registryTarget) Close() error {
	t.client.CloseIdleConnections()
	return nil
}

// Shared tells whether others see a target's blobs as soon as they are stored, and
// remove those that no image refers to: then they need not wait for the image.
func Shared(t Target) bool {
	_, ok := t.(*registryTarget)
	return ok
}

// taggable is a document as go-containerregistry puts it.
type taggable struct{ *Document }

func (d taggable) RawManifest() ([]byte, error)        { return d.Raw, nil }
func (d taggable) MediaType() (types.MediaType, error) { return d.Document.MediaType, nil }

func (t *registryTarget) Document(ctx context.Context, doc *Document) error {
	return t.put(ctx, t.repo.Digest(doc.Digest.String()), doc)
}

func (t *registryTarget) Tag(ctx context.Context, doc *Document) error { return t.put(ctx, t.tag, doc) }

// put sends a document. Where it has a subject and the registry does not know
// referrers, it also joins the index under the tag that stands in for them.
func (t *registryTarget) put(ctx context.Context, ref name.Reference, doc *Document) error {
	err := t.retry(ctx, func() error { return t.pusher.Put(ctx, ref, taggable{doc}) })
	if err != nil {
		return fmt.Errorf("push manifest %s: %w", doc.Digest, err)
	}
	return nil
}

// retry repeats what may succeed another time.
func (t *registryTarget) retry(ctx context.Context, f func() error) error {
	for n := 0; ; n++ {
		err := f()
		if err == nil || n >= t.push.Retries || !transient(ctx, err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(t.push.RetryDelay):
		}
	}
}

// transient tells whether another try may help: what the network did, or a
// registry that is busy; not what a registry refuses.
func transient(ctx context.Context, err error) bool {
	var status *transport.Error
	switch {
	case ctx.Err() != nil, errors.As(err, new(*wrongBlob)), errors.Is(err, artifact.ErrTooLarge):
		return false
	case errors.As(err, &status):
		return status.Temporary() || status.StatusCode >= 500 || status.StatusCode == http.StatusTooManyRequests || status.StatusCode == http.StatusRequestTimeout
	}
	return true
}

func (t *registryTarget) Blob(ctx context.Context, d v1.Descriptor, open Opener) (sent bool, err error) {
	data, err := newTape(ctx, d, open)
	if err != nil {
		return false, err
	}
	defer data.Close()
	u := &upload{t: t, ctx: ctx, data: data}
	err = t.retry(ctx, func() error {
		_, statErr := t.stat(ctx, d.Digest)
		if statErr == nil || !errors.Is(statErr, ErrNotFound) {
			return statErr
		}
		sent, err = u.run()
		return err
	})
	if err != nil {
		return sent, fmt.Errorf("push blob %s: %w", d.Digest, err)
	}
	return sent, nil
}

// upload sends one blob. It survives failures: what the registry has of it is not
// sent again.
type upload struct {
	t        *registryTarget
	ctx      context.Context
	data     *tape
	location string // of the session at the registry; empty if there is none
	minChunk int64
}

// run sends what is left of the blob and closes the session.
func (u *upload) run() (sent bool, err error) {
	if u.location != "" && u.resume() != nil {
		u.location = ""
	}
	if u.location == "" {
		mounted, err := u.begin()
		if err != nil || mounted {
			return false, err
		}
		if err := u.data.seek(0); err != nil {
			return false, err
		}
	}
	for size := u.data.want.Size; u.data.at < size; {
		n := size - u.data.at
		if u.t.push.ChunkSize > 0 {
			n = min(n, max(u.t.push.ChunkSize, u.minChunk))
		}
		if err := u.patch(n); err != nil {
			return true, err
		}
	}
	if err := u.data.verify(); err != nil {
		return true, err
	}
	return true, u.commit()
}

// begin opens a session, unless the registry takes the blob from a repository that
// has it.
func (u *upload) begin() (mounted bool, err error) {
	query := ""
	if u.t.mounts != "" {
		query = "?" + url.Values{"mount": {u.data.want.Digest.String()}, "from": {u.t.mounts}}.Encode()
	}
	req, err := http.NewRequestWithContext(u.ctx, http.MethodPost, u.t.url("blobs/uploads/")+query, nil)
	if err != nil {
		return false, err
	}
	res, err := u.t.do(req, http.StatusCreated, http.StatusAccepted)
	if err != nil {
		return false, err
	}
	res.Body.Close()
	if res.StatusCode == http.StatusCreated {
		return true, nil
	}
	u.minChunk, _ = strconv.ParseInt(res.Header.Get("OCI-Chunk-Min-Length"), 10, 64)
	return false, u.move(req, res)
}

// move takes over where a registry wants the next request.
func (u *upload) move(req *http.Request, res *http.Response) error {
	next, err := url.Parse(res.Header.Get("Location"))
	if err != nil || res.Header.Get("Location") == "" {
		return errors.New("the registry gave the upload no location, or one that is no URL")
	}
	u.location = req.URL.ResolveReference(next).String()
	return nil
}

// resume asks how much of the blob has arrived.
func (u *upload) resume() error {
	req, err := http.NewRequestWithContext(u.ctx, http.MethodGet, u.location, nil)
	if err != nil {
		return err
	}
	res, err := u.t.do(req, http.StatusNoContent)
	if err != nil {
		return err
	}
	res.Body.Close()
	_, last, _ := strings.Cut(strings.TrimPrefix(res.Header.Get("Range"), "bytes="), "-")
	end, err := strconv.ParseInt(last, 10, 64)
	if err != nil || end < 0 {
		return fmt.Errorf("the registry says it has the bytes %q", res.Header.Get("Range"))
	}
	if end > 0 { // "0-0" is nothing, as registries have it
		end++
	}
	if res.Header.Get("Location") != "" {
		if err := u.move(req, res); err != nil {
			return err
		}
	}
	return u.data.seek(end)
}

// patch sends n bytes from where the tape is.
func (u *upload) patch(n int64) error {
	from := u.data.at
	body := &lentBody{r: io.LimitReader(u.data, n)}
	defer body.Close()
	req, err := http.NewRequestWithContext(u.ctx, http.MethodPatch, u.location, body)
	if err != nil {
		return err
	}
	req.ContentLength = n
	req.Header.Set("Content-Type", "application/octet-stream")
	if u.t.push.ChunkSize > 0 || from > 0 {
		req.Header.Set("Content-Range", fmt.Sprintf("%d-%d", from, from+n-1))
	}
	res, err := u.t.do(req, http.StatusNoContent, http.StatusAccepted, http.StatusCreated)
	if err != nil {
		return err
	}
	res.Body.Close()
	return u.move(req, res)
}

// lentBody is a request's body that nobody reads any more once it is closed:
// net/http may go on reading when it has returned the answer.
type lentBody struct {
	mu sync.Mutex
	r  io.Reader // nil: closed
}

func (b *lentBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.r == nil {
		return 0, io.ErrClosedPipe
	}
	return b.r.Read(p)
}

func (b *lentBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.r = nil
	return nil
}

func (u *upload) commit() error {
	at, err := url.Parse(u.location)
	if err != nil {
		return err
	}
	query := at.Query()
	query.Set("digest", u.data.want.Digest.String())
	at.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(u.ctx, http.MethodPut, at.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	res, err := u.t.do(req, http.StatusCreated)
	if err != nil {
		return err
	}
	u.location = ""
	return res.Body.Close()
}
