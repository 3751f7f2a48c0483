// Package objectserver is a fake of an object store: the requests of Amazon's S3 and
// of Alibaba's OSS that read and write objects, with their refusals. It checks
// signatures and digests of bodies by code of its own, as the documentation of the
// two has them ("Signature Version 4", "OSS4-HMAC-SHA256", "OSS signature version 1"),
// and goes wrong on demand. It is for tests only; what it gets wrong about the real
// ones shows where there is a real one to test with.
package objectserver

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Kind is what a server is a fake of.
type Kind int

// The kinds of stores.
const (
	S3 Kind = iota
	OSS
)

// Server is one bucket. Its fields must not change while it serves.
type Server struct {
	Kind   Kind
	Bucket string
	Region string
	// Key and Secret are the credentials that requests must be signed with. Without
	// them everybody may do everything.
	Key, Secret string
	// MinPart is how small parts may be, the last one excepted; 0 is what the real
	// store wants.
	MinPart int64

	mu       sync.Mutex
	faults   func(r *http.Request, n int) *Fault
	objects  map[string][]byte
	uploads  map[string]*upload
	requests []Request
	counter  int
}

// Fault is what goes wrong. The first of the fields that is set counts.
type Fault struct {
	// Status and Code are a refusal, with Header; Unread leaves the body where it is.
	Status int
	Unread bool
	Code   string
	Header http.Header
	// Cut reads so many bytes of the body and drops the connection.
	Cut int64
	// Silent reads the body, and answers when the client has left.
	Silent bool
	// Lost does what it is asked for, and drops the connection.
	Lost bool
	// Late answers 200 and a refusal (Code), as S3 does when it has begun too early.
	Late bool
	// Flip changes a byte of the body on its way.
	Flip bool
}

// Request is what came.
type Request struct {
	Method, Key, Query string
	Header             http.Header
	Status             int
}

type upload struct {
	key   string
	parts map[int][]byte
}

// Put stores an object.
func (s *Server) Put(key string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(key, data)
}

func (s *Server) set(key string, data []byte) {
	if s.objects == nil {
		s.objects = map[string][]byte{}
	}
	s.objects[key] = data
}

// Object returns an object; ok is false if there is none.
func (s *Server) Object(key string) (data []byte, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok = s.objects[key]
	return data, ok
}

// Objects lists the names, sorted.
func (s *Server) Objects() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for key := range s.objects {
		list = append(list, key)
	}
	slices.Sort(list)
	return list
}

// Uploads is how many uploads have neither been completed nor aborted.
func (s *Server) Uploads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.uploads)
}

// Requests returns what came, in order.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	n := s.counter
	s.counter++
	s.mu.Unlock()
	bucket, key := s.place(r)
	answer := &recorder{ResponseWriter: w}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.requests = append(s.requests, Request{r.Method, key, r.URL.RawQuery, r.Header.Clone(), answer.status})
	}()
	fault := s.fault(r, n)
	if fault == nil {
		s.serve(answer, r, bucket, key)
		return
	}
	switch {
	case fault.Status != 0:
		if !fault.Unread {
			_, _ = io.Copy(io.Discard, r.Body)
		}
		for k, v := range fault.Header {
			w.Header()[k] = v
		}
		refuse(answer, fault.Status, fault.Code, "as the test wants it")
	case fault.Cut > 0:
		_, _ = io.CopyN(io.Discard, r.Body, fault.Cut)
		panic(http.ErrAbortHandler)
	case fault.Silent:
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	case fault.Lost:
		s.serve(&recorder{ResponseWriter: discard{http.Header{}}}, r, bucket, key)
		panic(http.ErrAbortHandler)
	case fault.Late:
		refuse(answer, http.StatusOK, fault.Code, "too late for a status")
	case fault.Flip:
		data, _ := io.ReadAll(r.Body)
		data[len(data)/2] ^= 1
		r.Body = io.NopCloser(bytes.NewReader(data))
		s.serve(answer, r, bucket, key)
	}
}

// SetFault sets what is asked about each request, by its number from 0, before
// anything else; nil as an answer goes on as usual.
func (s *Server) SetFault(f func(r *http.Request, n int) *Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = f
}

func (s *Server) fault(r *http.Request, n int) *Fault {
	s.mu.Lock()
	f := s.faults
	s.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(r, n)
}

// recorder notes the status.
type recorder struct {
	http.ResponseWriter
	status int
}

func (w *recorder) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

// place is the bucket and the object that a request is about: both in the path, or
// of OSS also the bucket as the first label of the host.
func (s *Server) place(r *http.Request) (bucket, key string) {
	path := strings.TrimPrefix(r.URL.Path, "/")
	if label, _, ok := strings.Cut(r.Host, "."); s.Kind == OSS && ok && label == s.Bucket {
		return label, path
	}
	bucket, key, _ = strings.Cut(path, "/")
	return bucket, key
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, bucket, key string) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		refuse(w, http.StatusBadRequest, "IncompleteBody", err.Error())
		return
	}
	if r.Method == http.MethodPut && r.ContentLength < 0 {
		refuse(w, http.StatusLengthRequired, "MissingContentLength", "You must provide the Content-Length HTTP header.")
		return
	}
	if code, why := s.authorize(r, bucket, key); code != "" {
		refuse(w, http.StatusForbidden, code, why)
		return
	}
	if code, why := s.checkBody(r, body); code != "" {
		refuse(w, http.StatusBadRequest, code, why)
		return
	}
	if bucket != s.Bucket {
		refuse(w, http.StatusNotFound, "NoSuchBucket", "The specified bucket does not exist.")
		return
	}
	query := r.URL.Query()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch id := query.Get("uploadId"); {
	case r.Method == http.MethodPost && query.Has("uploads"):
		s.initiate(w, key)
	case id != "":
		s.multipart(w, r, key, id, body)
	case r.Method == http.MethodPut:
		s.set(key, body)
		w.Header().Set("ETag", etag(body))
		w.WriteHeader(http.StatusOK)
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		s.get(w, r, key)
	default:
		refuse(w, http.StatusMethodNotAllowed, "MethodNotAllowed", r.Method)
	}
}

func (s *Server) get(w http.ResponseWriter, r *http.Request, key string) {
	data, ok := s.objects[key]
	if !ok {
		refuse(w, http.StatusNotFound, "NoSuchKey", "The specified key does not exist.")
		return
	}
	w.Header().Set("ETag", etag(data))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

func etag(data []byte) string {
	sum := md5.Sum(data)
	return `"` + hex.EncodeToString(sum[:]) + `"`
}

func (s *Server) initiate(w http.ResponseWriter, key string) {
	if s.uploads == nil {
		s.uploads = map[string]*upload{}
	}
	id := fmt.Sprintf("up/load+%d==", s.counter)
	s.uploads[id] = &upload{key, map[int][]byte{}}
	answer(w, "InitiateMultipartUploadResult", "<Bucket>"+s.Bucket+"</Bucket><UploadId>"+id+"</UploadId>")
}

func (s *Server) multipart(w http.ResponseWriter, r *http.Request, key, id string, body []byte) {
	u := s.uploads[id]
	if u == nil || u.key != key {
		refuse(w, http.StatusNotFound, "NoSuchUpload", "The specified upload does not exist.")
		return
	}
	switch r.Method {
	case http.MethodPut:
		n, err := strconv.Atoi(r.URL.Query().Get("partNumber"))
		if err != nil || n < 1 || n > 10000 {
			refuse(w, http.StatusBadRequest, "InvalidArgument", "partNumber")
			return
		}
		u.parts[n] = body
		w.Header().Set("ETag", etag(body))
		w.WriteHeader(http.StatusOK)
	case http.MethodPost:
		s.complete(w, id, u, body)
	case http.MethodDelete:
		delete(s.uploads, id)
		w.WriteHeader(http.StatusNoContent)
	default:
		refuse(w, http.StatusMethodNotAllowed, "MethodNotAllowed", r.Method)
	}
}

func (s *Server) minPart() int64 {
	switch {
	case s.MinPart > 0:
		return s.MinPart
	case s.Kind == OSS:
		return 100 << 10
	}
	return 5 << 20
}

func (s *Server) complete(w http.ResponseWriter, id string, u *upload, body []byte) {
	var list struct {
		XMLName xml.Name `xml:"CompleteMultipartUpload"`
		Part    []struct {
			PartNumber int
			ETag       string
		}
	}
	if err := xml.Unmarshal(body, &list); err != nil || len(list.Part) == 0 {
		refuse(w, http.StatusBadRequest, "MalformedXML", fmt.Sprint(err))
		return
	}
	var whole []byte
	for i, p := range list.Part {
		data, ok := u.parts[p.PartNumber]
		switch {
		case !ok || p.ETag != etag(data):
			refuse(w, http.StatusBadRequest, "InvalidPart", fmt.Sprintf("part %d", p.PartNumber))
			return
		case i > 0 && list.Part[i-1].PartNumber >= p.PartNumber:
			refuse(w, http.StatusBadRequest, "InvalidPartOrder", fmt.Sprintf("part %d", p.PartNumber))
			return
		case i < len(list.Part)-1 && int64(len(data)) < s.minPart():
			refuse(w, http.StatusBadRequest, "EntityTooSmall", fmt.Sprintf("part %d has %d bytes", p.PartNumber, len(data)))
			return
		}
		whole = append(whole, data...)
	}
	s.set(u.key, whole)
	delete(s.uploads, id)
	answer(w, "CompleteMultipartUploadResult", "<Key>"+u.key+"</Key>")
}

func answer(w http.ResponseWriter, root, inner string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(http.StatusOK)
	_, _ = io.WriteString(w, xml.Header+"<"+root+` xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`+inner+"</"+root+">")
}

// refuse answers as the real ones do, with more than a client should show.
func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	var text bytes.Buffer
	_ = xml.EscapeText(&text, []byte(message))
	fmt.Fprintf(w, "%s<Error><Code>%s</Code><Message>%s</Message><StringToSign>secret string</StringToSign><RequestId>1</RequestId></Error>",
		xml.Header, code, text.String())
}
