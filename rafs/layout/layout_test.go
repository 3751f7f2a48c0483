package layout

import "testing"

func TestChunkRecordRoundTrip(t *testing.T) {
	want := ChunkRecord{
		Digest: [32]byte{1, 31: 2}, BlobIndex: 3, Flags: ChunkCompressed | ChunkHasCRC32,
		CompressedSize: 4, UncompressedSize: 5, CompressedOffset: 6 << 32, UncompressedOffset: 7 << 32,
		FileOffset: 8 << 32, Index: 9, CRC32: 10,
	}
	b := want.Append(nil)
	if len(b) != ChunkRecordSize {
		t.Errorf("encoded length %d, want %d", len(b), ChunkRecordSize)
	}
	if got, err := DecodeChunkRecord(b); err != nil || got != want {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	if _, err := DecodeChunkRecord(b[:len(b)-1]); err == nil {
		t.Error("a record one byte short was decoded")
	}
}

func TestFeaturesString(t *testing.T) {
	for _, tt := range []struct {
		f    Features
		want string
	}{
		{0, ""},
		{FeatureAligned | FeatureCapTarTOC, "aligned,cap-tar-toc"},
		{FeatureBatch | FeatureEncrypted | FeatureExternal, "batch,encrypted,external"},
	} {
		if got := tt.f.String(); got != tt.want {
			t.Errorf("Features(%#x) = %q, want %q", uint32(tt.f), got, tt.want)
		}
	}
}
