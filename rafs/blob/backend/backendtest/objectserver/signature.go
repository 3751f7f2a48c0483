package objectserver

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// skew is how far clocks may be apart.
const skew = 15 * time.Minute

// authorize checks the signature of a request. It returns the code and the words of a
// refusal.
func (s *Server) authorize(r *http.Request, bucket, key string) (code, why string) {
	if s.Key == "" {
		return "", ""
	}
	auth := r.Header.Get("Authorization")
	switch {
	case auth == "":
		return "AccessDenied", "Access Denied."
	case s.Kind == S3:
		return s.signatureV4(r, auth)
	case strings.HasPrefix(auth, "OSS4-HMAC-SHA256 "):
		return s.ossV4(r, auth, bucket, key)
	default:
		return s.ossV1(r, auth, bucket, key)
	}
}

func mac(h func() hash.Hash, key []byte, data string) []byte {
	m := hmac.New(h, key)
	m.Write([]byte(data))
	return m.Sum(nil)
}

func sha(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// chain derives a key for signing.
func chain(secret string, parts ...string) []byte {
	key := []byte(secret)
	for _, p := range parts {
		key = mac(sha256.New, key, p)
	}
	return key
}

// uriEncode is the UriEncode of both documentations.
func uriEncode(s string, slash bool) string {
	var out strings.Builder
	for _, c := range []byte(s) {
		if strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~", c) >= 0 || c == '/' && !slash {
			out.WriteByte(c)
		} else {
			fmt.Fprintf(&out, "%%%02X", c)
		}
	}
	return out.String()
}

// canonicalQuery sorts a query; of OSS a key without a value has no "=".
func canonicalQuery(q url.Values, bare bool) string {
	var list []string
	for k, values := range q {
		for _, v := range values {
			if item := uriEncode(k, true); bare && v == "" {
				list = append(list, item)
			} else {
				list = append(list, item+"="+uriEncode(v, true))
			}
		}
	}
	slices.Sort(list)
	return strings.Join(list, "&")
}

func fresh(stamp time.Time) bool { return time.Since(stamp).Abs() <= skew }

// fields splits "a=b, c=d".
func fields(s string) map[string]string {
	out := map[string]string{}
	for part := range strings.SplitSeq(s, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(part), "=")
		out[k] = v
	}
	return out
}

// signatureV4 is Amazon's.
func (s *Server) signatureV4(r *http.Request, auth string) (code, why string) {
	rest, ok := strings.CutPrefix(auth, "AWS4-HMAC-SHA256 ")
	if !ok {
		return "InvalidRequest", "Please use AWS4-HMAC-SHA256."
	}
	have := fields(rest)
	stamp := r.Header.Get("X-Amz-Date")
	at, err := time.Parse("20060102T150405Z", stamp)
	if err != nil || !fresh(at) {
		return "RequestTimeTooSkewed", "The difference between the request time and the server's time is too large."
	}
	scope := stamp[:8] + "/" + s.Region + "/s3/aws4_request"
	if id, rest, _ := strings.Cut(have["Credential"], "/"); id != s.Key {
		return "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."
	} else if rest != scope {
		return "AuthorizationHeaderMalformed", "expecting " + scope
	}
	signed := strings.Split(have["SignedHeaders"], ";")
	if !slices.IsSorted(signed) {
		return "AuthorizationHeaderMalformed", "signed headers are not sorted"
	}
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-") && !slices.Contains(signed, name) {
			return "AccessDenied", "There were headers present in the request which were not signed: " + name
		}
	}
	var headers strings.Builder
	for _, name := range signed {
		value := strings.Join(r.Header.Values(name), ",")
		if name == "host" {
			value = r.Host
		}
		headers.WriteString(name + ":" + strings.TrimSpace(value) + "\n")
	}
	if !slices.Contains(signed, "host") || !slices.Contains(signed, "x-amz-content-sha256") {
		return "AccessDenied", "host and x-amz-content-sha256 must be signed"
	}
	canonical := strings.Join([]string{
		r.Method, uriEncode(r.URL.Path, false), canonicalQuery(r.URL.Query(), false), headers.String(),
		have["SignedHeaders"], r.Header.Get("X-Amz-Content-Sha256"),
	}, "\n")
	toSign := "AWS4-HMAC-SHA256\n" + stamp + "\n" + scope + "\n" + sha([]byte(canonical))
	key := chain("AWS4"+s.Secret, stamp[:8], s.Region, "s3", "aws4_request")
	if hex.EncodeToString(mac(sha256.New, key, toSign)) != have["Signature"] {
		return "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided."
	}
	return "", ""
}

// ossV4 is version 4 of OSS.
func (s *Server) ossV4(r *http.Request, auth, bucket, key string) (code, why string) {
	have := fields(strings.TrimPrefix(auth, "OSS4-HMAC-SHA256 "))
	stamp := r.Header.Get("X-Oss-Date")
	at, err := time.Parse("20060102T150405Z", stamp)
	if err != nil || !fresh(at) {
		return "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."
	}
	scope := stamp[:8] + "/" + s.Region + "/oss/aliyun_v4_request"
	if have["Credential"] != s.Key+"/"+scope {
		return "InvalidAccessKeyId", "The OSS Access Key Id you provided does not exist in our records."
	}
	var names []string
	for name := range r.Header {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "x-oss-") || name == "content-type" || name == "content-md5" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var headers strings.Builder
	for _, name := range names {
		headers.WriteString(name + ":" + strings.TrimSpace(strings.Join(r.Header.Values(name), ",")) + "\n")
	}
	canonical := strings.Join([]string{
		r.Method, uriEncode("/"+bucket+"/"+key, false), canonicalQuery(r.URL.Query(), true), headers.String(),
		have["AdditionalHeaders"], "UNSIGNED-PAYLOAD",
	}, "\n")
	if r.Header.Get("X-Oss-Content-Sha256") != "UNSIGNED-PAYLOAD" {
		return "InvalidArgument", "x-oss-content-sha256 must be UNSIGNED-PAYLOAD"
	}
	toSign := "OSS4-HMAC-SHA256\n" + stamp + "\n" + scope + "\n" + sha([]byte(canonical))
	signing := chain("aliyun_v4"+s.Secret, stamp[:8], s.Region, "oss", "aliyun_v4_request")
	if hex.EncodeToString(mac(sha256.New, signing, toSign)) != have["Signature"] {
		return "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided."
	}
	return "", ""
}

// ossV1 is version 1 of OSS.
func (s *Server) ossV1(r *http.Request, auth, bucket, key string) (code, why string) {
	at, err := http.ParseTime(r.Header.Get("Date"))
	if err != nil || !fresh(at) {
		return "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."
	}
	id, signature, ok := strings.Cut(strings.TrimPrefix(auth, "OSS "), ":")
	if !ok || id != s.Key {
		return "InvalidAccessKeyId", "The OSS Access Key Id you provided does not exist in our records."
	}
	var own []string
	for name, values := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-oss-") {
			own = append(own, name+":"+strings.Join(values, ",")+"\n")
		}
	}
	slices.Sort(own)
	var sub []string
	for name, values := range r.URL.Query() {
		if slices.Contains([]string{"uploads", "uploadId", "partNumber"}, name) {
			if values[0] != "" {
				name += "=" + values[0]
			}
			sub = append(sub, name)
		}
	}
	slices.Sort(sub)
	resource := "/" + bucket + "/" + key
	if len(sub) > 0 {
		resource += "?" + strings.Join(sub, "&")
	}
	toSign := strings.Join([]string{
		r.Method, r.Header.Get("Content-MD5"), r.Header.Get("Content-Type"), r.Header.Get("Date"), strings.Join(own, "") + resource,
	}, "\n")
	if base64.StdEncoding.EncodeToString(mac(sha1.New, []byte(s.Secret), toSign)) != signature {
		return "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided."
	}
	return "", ""
}

// checkBody compares a body with the digest that the request has of it.
func (s *Server) checkBody(r *http.Request, body []byte) (code, why string) {
	if want := r.Header.Get("X-Amz-Content-Sha256"); s.Kind == S3 && want != "UNSIGNED-PAYLOAD" && want != sha(body) {
		return "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed."
	}
	sum := md5.Sum(body)
	if want := r.Header.Get("Content-MD5"); want != "" && want != base64.StdEncoding.EncodeToString(sum[:]) {
		return "InvalidDigest", "The Content-MD5 you specified was invalid."
	}
	return "", ""
}
