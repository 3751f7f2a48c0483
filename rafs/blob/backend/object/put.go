package object

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/httprange"
)

// PutOptions say how to send a blob. Zero fields take the default.
type PutOptions struct {
	// Force sends a blob that is there, too.
	Force bool
	// Named says that the id is a name which says nothing of the bytes, such as that of
	// a bootstrap.
	Named bool
	// PartSize is how many bytes of a larger blob go into one request; 16 MiB by
	// default, more where a blob would have more parts than stores take. Stores want
	// 5 MiB at least.
	PartSize int64
	// Parallel is how many parts are on their way at the same time; 4 by default.
	Parallel int
	// Retries are the further tries of a request that failed on its way; 3 by
	// default, none if negative. RetryDelay lies between them; a second by default.
	Retries    int
	RetryDelay time.Duration
	// Progress is called with how many bytes have been sent, if not nil, never at the
	// same time, and with numbers that grow.
	Progress func(done int64)
}

// Limits of stores, all of which have those of S3 (Amazon S3 user guide, "Multipart
// upload limits").
const (
	defaultPart = 16 << 20
	maxParts    = 10_000
	// thinking is how long a store may need to put parts together, in silence.
	thinking = 5 * time.Minute
	// abortTime is how long it may take to take an upload back.
	abortTime = 15 * time.Second
)

func (o *PutOptions) setDefaults(size int64) {
	if o.PartSize <= 0 {
		o.PartSize = defaultPart
	}
	if least := (size + maxParts - 1) / maxParts; least > o.PartSize {
		o.PartSize = (least + 1<<20 - 1) >> 20 << 20
	}
	if o.Parallel <= 0 {
		o.Parallel = 4
	}
	if o.Retries == 0 {
		o.Retries = 3
	}
	if o.RetryDelay <= 0 {
		o.RetryDelay = time.Second
	}
}

// Put stores a blob under its id, which must be the SHA-256 of its bytes
// (but see PutOptions.Named), unless there is one of the same size. The result tells whether bytes were sent. The blob
// is read twice, the first time to hash it; Put holds no more of it than the buffers
// of connections. When it fails, there is no blob under the name, or the one that was
// there before, and parts that have arrived are taken back.
func (b *Bucket) Put(parent context.Context, id string, r io.ReaderAt, size int64, o PutOptions) (sent bool, err error) {
	if err := blob.CheckID(id); err != nil {
		return false, err
	}
	ctx, end, err := b.begin(parent)
	if err != nil {
		return false, fmt.Errorf("%s: blob %s: %w", b, id, err)
	}
	defer end()
	o.setDefaults(size)
	p := &put{b: b, parent: parent, id: id, r: r, size: size, o: o}
	if !o.Force {
		have, err := p.there(ctx)
		if err != nil {
			return false, fmt.Errorf("%s: blob %s: %w", b, id, err)
		}
		if have {
			p.progress(size)
			return false, nil
		}
	}
	if err = p.survey(ctx); err == nil {
		err = p.send(ctx)
	}
	if err != nil {
		return true, fmt.Errorf("%s: blob %s: %w", b, id, err)
	}
	p.progress(size)
	return true, nil
}

// put is one call of Put.
type put struct {
	b      *Bucket
	parent context.Context
	id     string
	r      io.ReaderAt
	size   int64
	o      PutOptions
	sums   [][]byte // of the parts

	mu         sync.Mutex
	done, told int64
}

// progress tells of bytes in all, passed of some more. Parts that are sent again
// count once.
func (p *put) progress(done int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = done
	p.tell()
}

func (p *put) passed(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += n
	p.tell()
}

func (p *put) tell() {
	if p.o.Progress != nil && p.done > p.told {
		p.told = p.done
		p.o.Progress(p.done)
	}
}

// retry repeats what may succeed another time. What it returns has a kind.
func (p *put) retry(ctx context.Context, f func(n int) error) error {
	for n := 0; ; n++ {
		err := httprange.Sort(p.parent, ctx, f(n))
		if err == nil || n >= p.o.Retries || ctx.Err() != nil || backend.Permanent(err) {
			return err
		}
		delay := p.o.RetryDelay
		var status *backend.StatusError
		if errors.As(err, &status) {
			delay = max(delay, status.RetryAfter)
		}
		select {
		case <-ctx.Done():
			return httprange.Sort(p.parent, ctx, err)
		case <-time.After(delay):
		}
	}
}

// there tells whether the bucket has a blob of this id and size.
func (p *put) there(ctx context.Context) (have bool, err error) {
	err = p.retry(ctx, func(int) error {
		n, err := p.b.stat(ctx, p.id)
		have = err == nil && n == p.size
		if errors.Is(err, backend.ErrNotFound) {
			return nil
		}
		return err
	})
	if errors.Is(err, backend.ErrDenied) {
		err = fmt.Errorf("is it there? %w (stores refuse to say so of what is not there to whoever may not list the bucket)", err)
	}
	return have, err
}

// survey reads the blob, checks that it is what its id says, and takes the digests
// of its parts.
func (p *put) survey(ctx context.Context) error {
	whole, buf := sha256.New(), make([]byte, 256<<10)
	for off := int64(0); off < p.size || off == 0; off += p.o.PartSize {
		part := p.b.d.Sum()
		_, err := io.CopyBuffer(io.MultiWriter(whole, part), &until{ctx, io.NewSectionReader(p.r, off, min(p.o.PartSize, p.size-off))}, buf)
		if err != nil {
			return httprange.Sort(p.parent, ctx, err)
		}
		p.sums = append(p.sums, part.Sum(nil))
	}
	if got := hex.EncodeToString(whole.Sum(nil)); got != p.id && !p.o.Named {
		return fmt.Errorf("%w: the SHA-256 of the %d bytes to send is %s", blob.ErrDigest, p.size, got)
	}
	return nil
}

// until is a reader that ends with its context.
type until struct {
	ctx context.Context
	r   io.Reader
}

func (u *until) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.r.Read(p)
}

// body is a part of the blob, by its number.
func (p *put) body(i int) *body {
	off := int64(i) * p.o.PartSize
	size := min(p.o.PartSize, p.size-off)
	return &body{r: p.r, off: off, size: size, sum: p.sums[i]}
}

// sendPart sends a part by a request that begin completes. What has passed of a try
// that failed is taken back.
func (p *put) sendPart(ctx context.Context, i int, q request) (header http.Header, err error) {
	q.method, q.key, q.patience = http.MethodPut, p.b.c.Prefix+p.id, p.b.c.WriteTimeout
	err = p.retry(ctx, func(int) error {
		passed := int64(0)
		q.body = p.body(i)
		q.body.passed = func(n int) { passed += int64(n); p.passed(int64(n)) }
		var err error
		if header, _, err = p.b.call(ctx, &q); err != nil {
			p.passed(-passed)
		}
		return err
	})
	return header, err
}

// send stores the blob, in one request or in parts.
func (p *put) send(ctx context.Context) error {
	if len(p.sums) == 1 {
		_, err := p.sendPart(ctx, 0, request{})
		return err
	}
	var err error
	for n := 0; ; n++ {
		p.progress(0)
		// An upload can be lost as a whole: a rule of the bucket removes old ones.
		if err = p.upload(ctx); n >= p.o.Retries || !errors.Is(err, errLost) {
			return err
		}
	}
}

// errLost means that the store does not know an upload any more.
var errLost = fmt.Errorf("%w: the upload is gone", backend.ErrUnavailable)

// upload sends the blob in parts. If it fails, or ctx ends, the parts are taken back.
func (p *put) upload(ctx context.Context) (err error) {
	id, err := p.initiate(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && !errors.Is(err, errLost) {
			err = p.abort(ctx, id, err)
		}
	}()
	etags := make([]string, len(p.sums))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(p.o.Parallel)
	for i := range p.sums {
		if groupCtx.Err() != nil {
			break
		}
		group.Go(func() error {
			query := "partNumber=" + strconv.Itoa(i+1) + "&uploadId=" + url.QueryEscape(id)
			header, err := p.sendPart(groupCtx, i, request{query: query})
			if err == nil && header.Get("ETag") == "" {
				err = fmt.Errorf("%w: no ETag in the answer", backend.ErrUnavailable)
			}
			if err != nil {
				return fmt.Errorf("part %d of %d: %w", i+1, len(p.sums), lost(err))
			}
			etags[i] = header.Get("ETag")
			return nil
		})
	}
	if err = group.Wait(); err == nil && ctx.Err() != nil { // before the first part
		err = context.Cause(ctx)
	}
	if err != nil {
		return httprange.Sort(p.parent, ctx, err)
	}
	return p.complete(ctx, id, etags)
}

// lost marks the error of a store that does not know the upload.
func lost(err error) error {
	var refused *Error
	if errors.As(err, &refused) && refused.Code == "NoSuchUpload" {
		return fmt.Errorf("%w: %w", errLost, err)
	}
	return err
}

func (p *put) initiate(ctx context.Context) (id string, err error) {
	q := &request{method: http.MethodPost, key: p.b.c.Prefix + p.id, query: "uploads=", patience: p.b.c.WriteTimeout}
	err = p.retry(ctx, func(int) error {
		_, doc, err := p.b.call(ctx, q)
		if err != nil {
			return err
		}
		var answer struct{ UploadId string } //nolint:revive // the store's own name
		if err := decode(q, p.b, doc, "InitiateMultipartUploadResult", &answer); err != nil {
			return err
		}
		if id = answer.UploadId; id == "" {
			return fmt.Errorf("%w: no upload id in the answer", backend.ErrUnavailable)
		}
		return nil
	})
	return id, err
}

// completion is the list of the parts.
type completion struct {
	XMLName xml.Name `xml:"CompleteMultipartUpload"`
	Part    []listedPart
}

type listedPart struct {
	PartNumber int
	ETag       string
}

// complete makes an object of the parts.
func (p *put) complete(ctx context.Context, id string, etags []string) error {
	list := completion{Part: make([]listedPart, len(etags))}
	for i, etag := range etags {
		list.Part[i] = listedPart{i + 1, etag}
	}
	raw, err := xml.Marshal(list)
	if err != nil {
		return err
	}
	sum := p.b.d.Sum()
	sum.Write(raw)
	q := &request{
		method: http.MethodPost, key: p.b.c.Prefix + p.id, query: "uploadId=" + url.QueryEscape(id), patience: thinking,
		header: http.Header{"Content-Type": {"application/xml"}},
		body:   &body{r: bytes.NewReader(raw), size: int64(len(raw)), sum: sum.Sum(nil)},
	}
	return p.retry(ctx, func(n int) error {
		_, doc, err := p.b.call(ctx, q)
		if err == nil {
			err = decode(q, p.b, doc, "CompleteMultipartUploadResult", new(struct{}))
		}
		if err = lost(err); n > 0 && errors.Is(err, errLost) {
			// The try before may have succeeded, and its answer may have got lost.
			if have, statErr := p.b.stat(ctx, p.id); statErr == nil && have == p.size {
				return nil
			}
		}
		return err
	})
}

// abort takes the parts of an upload back, also when ctx has ended. It returns the
// reason, and says if parts stay.
func (p *put) abort(ctx context.Context, id string, reason error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTime)
	defer cancel()
	q := &request{
		method: http.MethodDelete, key: p.b.c.Prefix + p.id, query: "uploadId=" + url.QueryEscape(id), patience: abortTime,
	}
	var err error
	for range 3 {
		if _, _, err = p.b.call(ctx, q); err == nil || errors.Is(err, backend.ErrNotFound) {
			return reason
		}
		if backend.Permanent(err) {
			break
		}
	}
	return fmt.Errorf("%w (what has arrived stays in the bucket, without a name, as upload %.80q: %v)", reason, id, err)
}
