// Package s3 reads and writes blobs in a bucket of Amazon's S3, or of a store that
// speaks like it, such as MinIO. Requests are signed by version 4 of its signatures,
// with the code of minio-go; buckets are named in the path, as nydusd does it
// (nydus storage/src/backend/s3.rs).
package s3

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/signer"

	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/object"
)

// DefaultEndpoint is where Amazon has it.
const DefaultEndpoint = "s3.amazonaws.com"

// metadataTimeout is how long a cloud's own service for credentials may take. Machines
// outside of the cloud have none, and reads must not wait for it.
const metadataTimeout = 2 * time.Second

// New makes a bucket. Region is required. Without an access key it is looked for where
// Amazon's tools do: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials,
// and, unless AWS_EC2_METADATA_DISABLED is "true", the services of its cloud. Where
// there is none the first time, requests are not signed, which public buckets take.
func New(c object.Config) (*object.Bucket, error) {
	if c.Endpoint == "" {
		c.Endpoint = DefaultEndpoint
	}
	c, err := c.Normalize()
	if err != nil {
		return nil, fmt.Errorf("s3: %w", err)
	}
	if c.Region == "" {
		return nil, errors.New("s3: no region: want one, such as us-east-1, which MinIO uses too")
	}
	s := &session{region: c.Region, credentials: credentials.NewStaticV4(c.AccessKeyID, c.AccessKeySecret, "")}
	if c.AccessKeyID == "" {
		s.credentials = credentials.NewChainCredentials(providers(os.Getenv))
	}
	b, err := object.New(c, object.Dialect{
		Kind: "s3", Host: c.Endpoint, Path: "/" + c.Bucket,
		Sum: sha256.New, SetSum: setSum, Sign: s.sign,
	})
	if err != nil {
		return nil, fmt.Errorf("s3: %w", err)
	}
	return b, nil
}

// providers are the places that have credentials.
func providers(getenv func(string) string) []credentials.Provider {
	list := []credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}}
	if getenv("AWS_EC2_METADATA_DISABLED") != "true" {
		list = append(list, &credentials.IAM{})
	}
	return list
}

// session is what signs.
type session struct {
	region      string
	credentials *credentials.Credentials
	anonymous   atomic.Bool // there are no credentials
}

const sumHeader = "X-Amz-Content-Sha256"

// empty is the SHA-256 of nothing.
var empty = sha256.Sum256(nil)

func setSum(h http.Header, sum []byte) {
	if sum == nil {
		sum = empty[:]
	}
	h.Set(sumHeader, hex.EncodeToString(sum))
}

func (s *session) sign(ctx context.Context, req *http.Request, _ string) error {
	if s.anonymous.Load() {
		return nil
	}
	have, err := s.credentials.GetWithContext(&credentials.CredContext{
		Client: &http.Client{Timeout: metadataTimeout}, Context: ctx,
	})
	if err != nil {
		return fmt.Errorf("%w: %w", backend.ErrUnavailable, err)
	}
	if have.AccessKeyID == "" {
		s.anonymous.Store(true)
		return nil
	}
	signed := signer.SignV4(*req, have.AccessKeyID, have.SecretAccessKey, have.SessionToken, s.region)
	req.Header = signed.Header
	return nil
}
