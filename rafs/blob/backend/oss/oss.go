// Package oss reads and writes blobs in a bucket of Alibaba Cloud's OSS. Requests are
// signed by the code of Alibaba's SDK: by version 4 of its signatures where the region
// is known, else by version 1, as nydusd does it (nydus storage/src/backend/oss.rs).
// The bucket is a part of the host's name, or, where the endpoint is an address, of
// the path.
package oss

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/aliyun/alibabacloud-oss-go-sdk-v2/oss/credentials"
	"github.com/aliyun/alibabacloud-oss-go-sdk-v2/oss/signer"

	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/object"
)

// New makes a bucket. Without a region it is that of Alibaba's own endpoints
// (oss-REGION.aliyuncs.com), if the endpoint is one. Without an access key it is
// OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET (and OSS_SESSION_TOKEN) of the
// environment; without any, requests are not signed.
func New(c object.Config) (*object.Bucket, error) {
	c, err := c.Normalize()
	if err != nil {
		return nil, fmt.Errorf("oss: %w", err)
	}
	if c.Region == "" {
		c.Region = regionOf(c.Endpoint)
	}
	d := object.Dialect{Kind: "oss", Host: c.Bucket + "." + c.Endpoint, Sum: md5.New, SetSum: setSum}
	if object.IsIP(c.Endpoint) {
		d.Host, d.Path = c.Endpoint, "/"+c.Bucket
	}
	s := &session{region: c.Region, bucket: c.Bucket, token: os.Getenv("OSS_SESSION_TOKEN")}
	if s.id, s.secret = c.AccessKeyID, c.AccessKeySecret; s.id != "" {
		s.token = ""
	} else {
		s.id, s.secret = os.Getenv("OSS_ACCESS_KEY_ID"), os.Getenv("OSS_ACCESS_KEY_SECRET")
	}
	if s.signer = signer.Signer(&signer.SignerV1{}); c.Region != "" {
		s.signer = &signer.SignerV4{}
	}
	d.Sign = s.sign
	b, err := object.New(c, d)
	if err != nil {
		return nil, fmt.Errorf("oss: %w", err)
	}
	return b, nil
}

// regionOf is the region that an endpoint has in its name; empty if none.
func regionOf(endpoint string) string {
	host, _, _ := strings.Cut(endpoint, ":")
	label, own := strings.CutSuffix(host, ".aliyuncs.com")
	region, named := strings.CutPrefix(label, "oss-")
	region = strings.TrimSuffix(region, "-internal")
	if !own || !named || strings.Contains(region, ".") || !strings.Contains(region, "-") || strings.HasPrefix(region, "accelerate") {
		return ""
	}
	return region
}

// session is what signs.
type session struct {
	signer            signer.Signer
	region, bucket    string
	id, secret, token string
}

func setSum(h http.Header, sum []byte) {
	if sum != nil {
		h.Set("Content-MD5", base64.StdEncoding.EncodeToString(sum))
	}
}

func (s *session) sign(ctx context.Context, req *http.Request, key string) error {
	if s.id == "" || s.secret == "" {
		return nil
	}
	product := "oss"
	err := s.signer.Sign(ctx, &signer.SigningContext{
		Product: &product, Region: &s.region, Bucket: &s.bucket, Key: &key, Request: req,
		Credentials: &credentials.Credentials{AccessKeyID: s.id, AccessKeySecret: s.secret, SecurityToken: s.token},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", backend.ErrDenied, err)
	}
	return nil
}
