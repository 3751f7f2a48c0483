//go:build minio

package convert

import (
	"testing"

	"github.com/rafsd/rafsd/rafs/blob/backend/backendtest/objectserver"
	"github.com/rafsd/rafsd/rafs/blob/backend/object"
	"github.com/rafsd/rafsd/rafs/blob/backend/s3"
)

// A real MinIO server takes and gives the blobs of images. Run by make interop-minio.
func TestMinIO(t *testing.T) {
	b, err := s3.New(object.Config{
		Scheme: "http", Endpoint: objectserver.MinIO(t, "images"), Region: objectserver.MinIORegion, Bucket: "images",
		Prefix: "rafs/", AccessKeyID: objectserver.MinIOKey, AccessKeySecret: objectserver.MinIOSecret,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	oci := t.TempDir()
	newImage(t, "gzip", fixtureTars(t, layerTars...)...).layout(t, oci, "")
	for name, o := range flavours {
		if !o.Reference {
			t.Run(name, func(t *testing.T) {
				o.Bucket = &Bucket{Bucket: b}
				intoBucket(t, oci, o)
				intoBucket(t, oci, o)
			})
		}
	}
}
