package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// flagCase is a command line of nydus-image and the code that it ends with: 0, 2
// for what the grammar refuses, 1 for what a rule does. Words in capitals are
// replaced by paths of flagFolder.
type flagCase struct {
	args string
	code int
	// since is the version of nydus-image that knows all of it, 2 where 2.2 does.
	since string
}

// flagCases has been run by nydus-image (TestPeerFlags).
var flagCases = []flagCase{
	{"create -B B -D D DIR", 0, "2.2"},
	{"create -BB -DD DIR", 0, "2.2"},
	{"create -B=B -D=D DIR", 0, "2.2"},
	{"create --bootstrap=B --blob-dir D DIR", 0, "2.2"},
	{"create DIR -B B -D D", 0, "2.2"},
	{"create -t directory -B B -b BLOB DIR", 0, "2.2"},
	{"create -t dir-rafs -v 5 -B B -D D DIR", 0, "2.2"},
	{"create -v5 -B B -D D --aligned-chunk DIR", 0, "2.2"},
	{"create -v 4 -B B -D D DIR", 2, "2.2"},
	{"create --source-type tar-rafs -B B -D D TAR", 0, "2.2"},
	{"create -t tar-rafs -B B -D D DIR", 1, "2.2"},
	{"create -B B -D D TAR", 1, "2.2"},
	{"create -t nonsense -B B -D D DIR", 2, "2.2"},
	{"create -B B -D D", 2, "2.2"},
	{"create -B B -D D DIR DIR", 2, "2.2"},
	{"create -D D DIR", 0, "2.2"},
	{"create DIR", 2, "2.2"},
	{"create -B B DIR", 1, "2.2"},
	{"create -B B -D NOWHERE DIR", 1, "2.2"},
	{"create -B B -D D NOWHERE", 1, "2.2"},
	{"create -B B --blob-inline-meta -D D DIR", 2, "2.2"},
	{"create --blob-inline-meta -b BLOB DIR", 0, "2.2"},
	{"create --inline-bootstrap -D D DIR", 0, "2.2"},
	{"create --blob-inline-meta --blob-id x -b BLOB DIR", 2, "2.2"},
	{"create --blob-id some-id -B B -D D DIR", 0, "2.2"},
	{"create --chunk-size 0x10000 -B B -D D DIR", 0, "2.2"},
	{"create --chunk-size 0X1000 -B B -D D DIR", 0, "2.2"},
	{"create --chunk-size 65536 -B B -D D DIR", 0, "2.2"},
	{"create --chunk-size 0x800 -B B -D D DIR", 1, "2.2"},
	{"create --chunk-size 0x2000000 -B B -D D DIR", 1, "2.2"},
	{"create --chunk-size 65537 -B B -D D DIR", 1, "2.2"},
	{"create --chunk-size big -B B -D D DIR", 1, "2.2"},
	{"create --compressor none -B B -D D DIR", 0, "2.2"},
	{"create --compressor lz4_block --digester sha256 -B B -D D DIR", 0, "2.2"},
	{"create --compressor gzip -B B -D D DIR", 2, "2.2"},
	{"create --digester md5 -B B -D D DIR", 2, "2.2"},
	{"create --features blob-toc -B B -D D DIR", 0, "2.2"},
	{"create --features nonsense -B B -D D DIR", 2, "2.2"},
	{"create --features blob-toc -v 5 -B B -D D DIR", 1, "2.2"},
	{"create --whiteout-spec none -B B -D D DIR", 0, "2.2"},
	{"create --whiteout-spec some -B B -D D DIR", 2, "2.2"},
	{"create --prefetch-policy fs -B B -D D DIR", 0, "2.2"},
	{"create --prefetch-policy all -B B -D D DIR", 2, "2.2"},
	{"create --repeatable -B B -D D DIR", 0, "2.2"},
	{"create --nonsense -B B -D D DIR", 2, "2.2"},
	{"create -Z -B B -D D DIR", 2, "2.2"},
	{"create -t targz-ref -b BLOB --blob-inline-meta TGZ", 0, "2.2"},
	{"create -t targz-ref -v 5 -B B -D D TGZ", 1, "2.2"},
	{"create -t targz-ref --prefetch-policy blob -B B -D D TGZ", 1, "2.2"},
	{"create -t targz-ref --blob-id x -B B -D D TGZ", 1, "2.2"},
	{"create -t stargz_index -B B -D D TGZ", 2, "2.2"},
	{"create -t estargztoc-ref -B B -D D TGZ", 2, "2.2"},
	{"create -t tar-tarfs -B B -D D TAR", 0, "2.3"},
	{"create -t tar-tarfs -B B -b BLOB TAR", 1, "2.3"},
	{"create -t tar-tarfs --blob-inline-meta -D D TAR", 1, "2.3"},
	{"create -t tar-tarfs --features blob-toc -B B -D D TAR", 1, "2.3"},
	{"create -t tar-tarfs --aligned-chunk -B B -D D TAR", 1, "2.3"},
	{"create -t tar-tarfs --parent-bootstrap B0 -B B -D D TAR", 1, "2.3"},
	{"create -t tar-tarfs --chunk-dict B0 -B B -D D TAR", 1, "2.3"},
	{"create -t tar-tarfs -E -B B -D D TAR", 1, "2.3"},
	{"create -t targz-ref -E -B B -D D TGZ", 1, "2.3"},
	{"create --batch-size 0x10000 -B B -D D DIR", 0, "2.3"},
	{"create --batch-size 0 -v 5 -B B -D D DIR", 0, "2.3"},
	{"create --batch-size 0x10000 -v 5 -B B -D D DIR", 1, "2.3"},
	{"create --batch-size 0x10001 -B B -D D DIR", 1, "2.3"},
	{"create --batch-size 0x200000 -B B -D D DIR", 1, "2.3"},
	{"create --batch-size 0x10000 -t targz-ref -B B -D D TGZ", 1, "2.3"},
	{"create --blob-cache-dir D -B B DIR", 0, "2.3"},
	{"create --blob-cache-dir D -D D -B B DIR", 2, "2.3"},
	{"create --blob-cache-dir D -b BLOB -B B DIR", 2, "2.3"},
	{"create --blob-cache-dir D --compressor none -B B DIR", 2, "2.3"},
	{"create --blob-cache-dir NOWHERE -B B DIR", 1, "2.3"},
	{"create --chunk-dict bootstrap=B0 -B B -D D DIR", 0, "2.3"},
	{"create --chunk-dict redis=B0 -B B -D D DIR", 1, "2.2"},

	{"check B0", 0, "2.2"},
	{"check -B B0", 0, "2.2"},
	{"check -BB0 -v -J J", 0, "2.2"},
	{"check -B B0 B0", 2, "2.2"},
	{"check", 2, "2.2"},
	{"check NOWHERE", 1, "2.2"},
	{"check TAR", 1, "2.2"},
	{"check -D D -C J -B B0", 2, "2.3"},
	{"-l error check -B B0", 0, "2.2"},
	{"check -l loud -B B0", 2, "2.2"},
	{"check --log-level error -B B0", 0, "2.2"},

	{"merge -B B B0", 0, "2.2"},
	{"merge B0 -B B", 0, "2.2"},
	{"merge -D D B0", 0, "2.2"},
	{"merge B0", 1, "2.2"},
	{"merge -B B", 2, "2.2"},
	{"merge -B B NOWHERE", 1, "2.2"},
	{"merge -B B B0 B5", 2, "2.3"},
	{"merge -B B --blob-sizes 1,2 B0", 1, "2.2"},
	{"merge -B B --original-blob-ids a --prefetch-policy none B0", 0, "2.3"},

	{"inspect -R stats B0", 0, "2.2"},
	{"inspect --request=blobs -B B0", 0, "2.2"},
	{"inspect -Rblobs B0", 0, "2.2"},
	{"inspect -R nonsense B0", 1, "2.4"},
	{"inspect -R stats", 2, "2.2"},
	{"stat -B B0", 0, "2.2"},
	{"stat -D D", 0, "2.2"},
	{"stat", 1, "2.2"},
	{"stat -B NOWHERE", 1, "2.2"},
	{"stat -B B0 --digester md5", 2, "2.2"},
	{"unpack -D D0 --output OUT B0", 0, "2.2"},
	{"unpack -D D0 B0", 2, "2.2"},
	{"unpack --output OUT B0", 1, "2.2"},
	{"export --block -D D0 -B B0 -O OUT", 0, "2.4"},
	{"export -D D0 -B B0 -O OUT", 2, "2.4"},
	{"export --block -D D0 -O OUT", 2, "2.4"},
	{"export --block -D D0 -B B0 --threads 99 -O OUT", 2, "2.4"},
	{"compact -D D0 -O OUT", 2, "2.4"},
	{"compact -B B0 -D D0 --layers-to-compact 0 -O OUT", 0, "2.4"},
	{"compact -B B0 -D D0 --min-used-ratio many -O OUT", 1, "2.4"},
	{"optimize -D D0 -p J --output-blob-dir D -O OUT", 2, "2.4"},
	{"optimize -B B0 -D D0 -O OUT", 1, "2.4"},
	{"chunkdict generate -B B", 2, "2.4"},
	{"nonsense", 2, "2.2"},
	{"", 0, "2.2"},
	{"--version", 0, "2.2"},
	{"-V", 0, "2.2"},
	{"create -h", 0, "2.2"},
	{"help create", 0, "2.2"},
	{"check --help", 0, "2.2"},
}

// flagFolder makes the files that command lines name: two images of other chunk
// sizes with their blobs, a folder, a tar, a gzip of it.
func flagFolder(t testing.TB, image func(args ...string)) *strings.Replacer {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"dir", "d", "d0"} {
		if err := os.Mkdir(at(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var plain, packed bytes.Buffer
	w := tar.NewWriter(&plain)
	body := []byte(strings.Repeat("a file\n", 100))
	if err := w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(body))}); err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(&packed)
	for _, step := range []func() error{
		func() error { _, err := w.Write(body); return err }, w.Close,
		func() error { _, err := z.Write(plain.Bytes()); return err }, z.Close,
		func() error { return os.WriteFile(at("dir/file"), body, 0o644) },
		func() error { return os.WriteFile(at("tar"), plain.Bytes(), 0o644) },
		func() error { return os.WriteFile(at("tgz"), packed.Bytes(), 0o644) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	image("create", "-l", "error", "-B", at("b0"), "-D", at("d0"), at("dir"))
	image("create", "-l", "error", "-B", at("b5"), "-D", at("d0"), "--chunk-size", "0x10000", at("dir"))
	return strings.NewReplacer("DIR", at("dir"), "NOWHERE", at("nowhere"), "TAR", at("tar"), "TGZ", at("tgz"), "BLOB", at("blob"),
		"OUT", at("out"), "B0", at("b0"), "B5", at("b5"), "D0", at("d0"), " B ", " "+at("b")+" ", "=B ", "="+at("b")+" ", "-BB ", "-B"+at("b")+" ",
		" D ", " "+at("d")+" ", "=D ", "="+at("d")+" ", "-DD ", "-D"+at("d")+" ", " J ", " "+at("j")+" ")
}

// words are the arguments of a case.
func (c *flagCase) words(r *strings.Replacer) []string {
	// Names that follow each other share a space.
	return strings.Fields(r.Replace(strings.ReplaceAll(c.args, " ", "  ") + " "))
}

// nydusImage runs the command in this process.
func runNydusImage(args ...string) (code int, out, errs string) {
	var stdout, stderr bytes.Buffer
	a := &app{stdin: strings.NewReader("/\n"), stdout: &stdout, stderr: &stderr, getenv: func(string) string { return "x" }}
	code = a.run(append([]string{"nydus-image"}, args...))
	return code, stdout.String(), stderr.String()
}

func TestFlagsOfNydusImage(t *testing.T) {
	r := flagFolder(t, func(args ...string) {
		if code, _, errs := runNydusImage(args...); code != 0 {
			t.Fatalf("%v: %d, %s", args, code, errs)
		}
	})
	for _, c := range flagCases {
		code, _, errs := runNydusImage(c.words(r)...)
		if code != c.code {
			t.Errorf("%s: got code %d, want %d: %s", c.args, code, c.code, errs)
		}
		if code != 0 && !strings.Contains(errs, "nydus-image") {
			t.Errorf("%s: no word of what is wrong: %q", c.args, errs)
		}
	}
}
