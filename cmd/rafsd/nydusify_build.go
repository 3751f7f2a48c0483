package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rafsd/rafsd/rafs/blob/backend/object"
	"github.com/rafsd/rafsd/rafs/image"
)

// packFlags are those of nydusify build.
type packFlags struct {
	source, out, name                string
	push, compact                    bool
	place                            backendOptions
	dict, parent, compactConfig      string
	fsVersion, compressor, chunkSize string
	parentBlobs                      []string // by their ids
}

// defaultPackDir is where nydusify build puts things (packer.defaultOutputDir).
const defaultPackDir = "./.nydus-build-output"

// nydusifyBuild makes an image of a folder: what nydusify has nydus-image do, and the
// names of files that it gives.
func (a *app) nydusifyBuild() *cobra.Command {
	f := &packFlags{}
	cmd := &cobra.Command{
		Use: "build", Aliases: []string{"pack"}, Args: cobra.NoArgs,
		Short: "Build a RAFS file system from a folder",
	}
	flags := cmd.Flags()
	flags.StringVar(&f.source, "source-dir", "", "folder to make an image of (also --target-dir)")
	env(flags, "source-dir", "SOURCE_DIR")
	flags.StringVarP(&f.out, "output-dir", "o", "", "folder for what is made (default "+defaultPackDir+")")
	env(flags, "output-dir", "OUTPUT_DIR")
	flags.StringVar(&f.name, "name", "", "name of the image, for its files (also --meta, --bootstrap)")
	env(flags, "name", "BOOTSTRAP", "IMAGE_NAME")
	flags.BoolVar(&f.push, "backend-push", false, "put what is made into the bucket that the backend is")
	env(flags, "backend-push", "BACKEND_PUSH")
	f.place.register(flags, "", "where blobs go and come from, with --backend-push and --compact (default oss)", true)
	flags.StringVar(&f.dict, "chunk-dict", "", "bootstrap whose chunks need not be stored again: bootstrap=FILE")
	env(flags, "chunk-dict", "CHUNK_DICT")
	flags.StringVar(&f.parent, "parent-bootstrap", "", "bootstrap of the image that the folder is a layer on")
	env(flags, "parent-bootstrap", "PARENT_BOOTSTRAP")
	flags.BoolVar(&f.compact, "compact", false, "compact the image of --parent-bootstrap before, if there is something to gain")
	env(flags, "compact", "COMPACT")
	flags.StringVar(&f.compactConfig, "compact-config-file", "", "when there is, JSON: MinUsedRatio, CompactBlobSize, MaxCompactSize, LayersToCompact")
	env(flags, "compact-config-file", "COMPACT_CONFIG_FILE")
	f.fsVersion = "6"
	flags.StringVar(&f.fsVersion, "fs-version", "6", "version of the format: 5 or 6")
	env(flags, "fs-version", "FS_VERSION")
	flags.StringVar(&f.compressor, "compressor", "zstd", "compress chunks with none, lz4_block or zstd")
	env(flags, "compressor", "COMPRESSOR")
	flags.StringVar(&f.chunkSize, "chunk-size", "0x100000", "size of chunks, a power of two")
	env(flags, "chunk-size", "CHUNK_SIZE")
	flags.SetNormalizeFunc(otherNames(map[string]string{"target-dir": "source-dir", "meta": "name", "bootstrap": "name"}))
	ignored(flags, "nydus-image")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := required(cmd, "source-dir", "name"); err != nil {
			return err
		}
		return a.runPack(cmd.Context(), f)
	}
	return cmd
}

// otherNames gives flags further names.
func otherNames(names map[string]string) func(*pflag.FlagSet, string) pflag.NormalizedName {
	return func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(cmp.Or(names[name], name))
	}
}

func (a *app) runPack(ctx context.Context, f *packFlags) error {
	if st, err := os.Stat(f.source); err != nil {
		return fmt.Errorf("--source-dir: %w", err)
	} else if !st.IsDir() {
		return fmt.Errorf("--source-dir %s: want a folder", f.source)
	}
	f.out = cmp.Or(f.out, defaultPackDir)
	if err := os.MkdirAll(f.out, 0o755); err != nil {
		return fmt.Errorf("--output-dir: %w", err)
	}
	to := bucketPair{}
	if f.push || f.compact {
		var err error
		if to, err = openBuckets(f.place); err != nil {
			return err
		}
		defer to.close()
	}
	if f.compact && f.parent != "" {
		if err := a.compactParent(ctx, f, &to); err != nil {
			return fmt.Errorf("compact %s: %w", f.parent, err)
		}
	}
	boot, blob, err := a.pack(ctx, f)
	if err != nil {
		return err
	}
	if f.push {
		for _, id := range f.parentBlobs { // those that --compact has made
			if err := putFile(ctx, to.blobs, filepath.Join(f.out, id), false); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		if boot, blob, err = to.put(ctx, boot, blob); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(a.stdout, "bootstrap %s\nblob %s\n", boot, cmp.Or(blob, "none"))
	return err
}

// names are the files of an image: NAME.meta, or NAME as it is if it has an extension,
// and NAME.blob.
func (f *packFlags) names() (boot, blob string) {
	ext := filepath.Ext(f.name)
	boot = filepath.Join(f.out, f.name)
	blob = strings.TrimSuffix(boot, ext) + ".blob"
	if ext == "" {
		boot += ".meta"
	}
	return boot, blob
}

// pack makes the image. Its blob is empty if it has none of its own.
func (a *app) pack(ctx context.Context, f *packFlags) (boot, blob string, err error) {
	boot, blob = f.names()
	output := filepath.Join(f.out, "output.json")
	args := []string{
		"create", "--bootstrap", boot, "--blob", blob, "--output-json", output, "--whiteout-spec", "oci",
		"--fs-version", f.fsVersion, "--compressor", f.compressor, "--chunk-size", f.chunkSize,
	}
	old := []string{f.parent, strings.TrimPrefix(f.dict, "bootstrap=")}
	if f.parent != "" {
		args = append(args, "--parent-bootstrap", f.parent)
	}
	if f.dict != "" {
		args = append(args, "--chunk-dict", f.dict)
	}
	known := map[string]bool{} // blobs that are there already
	for _, path := range slices.DeleteFunc(old, func(p string) bool { return p == "" }) {
		im, err := image.Open(path, image.Options{InFile: true})
		if err != nil {
			return "", "", fmt.Errorf("%s: %w", path, err)
		}
		for _, b := range im.Blobs() {
			known[b.ID] = true
			if path == f.parent {
				f.parentBlobs = append(f.parentBlobs, b.ID)
			}
		}
		_ = im.Close() // was only read
	}
	if err := a.asNydusImage(ctx, append(args, f.source)...); err != nil {
		return "", "", err
	}
	raw, err := os.ReadFile(output)
	if err != nil {
		return "", "", err
	}
	var made struct{ Blobs []string }
	if err := json.Unmarshal(raw, &made); err != nil {
		return "", "", fmt.Errorf("%s: %w", output, err)
	}
	made.Blobs = slices.DeleteFunc(made.Blobs, func(id string) bool { return known[id] })
	switch {
	case len(made.Blobs) == 0:
		return boot, "", nil
	case f.parent == "" && !f.push:
		return boot, blob, nil
	}
	named := filepath.Join(f.out, made.Blobs[0])
	return boot, named, os.Rename(blob, named)
}

// asNydusImage runs a verb of nydus-image.
func (a *app) asNydusImage(ctx context.Context, args ...string) error {
	root := a.nydusImage()
	root.SetArgs(args)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	return root.ExecuteContext(ctx)
}

// compactParent puts another bootstrap in place of --parent-bootstrap, if that is worth
// it. New blobs go to the output folder.
func (a *app) compactParent(ctx context.Context, f *packFlags, to *bucketPair) error {
	limits := map[string]string{"minusedratio": "5", "compactblobsize": "10485760", "maxcompactsize": "104857600", "layerstocompact": "32"}
	if f.compactConfig != "" {
		if err := readLimits(f.compactConfig, limits); err != nil {
			return fmt.Errorf("--compact-config-file %s: %w", f.compactConfig, err)
		}
	}
	out := f.parent + ".compact"
	if err := os.Remove(out); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	args := []string{
		"compact", "--bootstrap", f.parent, "--output-bootstrap", out, "--blob-dir", f.out,
		"--min-used-ratio", limits["minusedratio"], "--compact-blob-size", limits["compactblobsize"],
		"--max-compact-size", limits["maxcompactsize"], "--layers-to-compact", limits["layerstocompact"],
		"--backend-type", to.kind, "--backend-config", string(to.blobConfig),
		"--output-json", filepath.Join(f.out, "compact-result.json"),
	}
	if f.dict != "" {
		args = append(args, "--chunk-dict", f.dict)
	}
	if err := a.asNydusImage(ctx, args...); err != nil {
		return err
	}
	if _, err := os.Stat(out); err == nil {
		f.parent = out
	}
	return nil
}

// readLimits reads what a file says of when to compact. nydusify takes
// "MinUsedRatio": "5"; what its help says is "min_used_ratio": 5.
func readLimits(path string, limits map[string]string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var given map[string]any
	if err := json.Unmarshal(raw, &given); err != nil {
		return err
	}
	for key, value := range given {
		key = strings.ToLower(strings.ReplaceAll(key, "_", ""))
		if _, ok := limits[key]; !ok {
			continue // such as BlobsDir
		}
		switch v := value.(type) {
		case string:
			limits[key] = v
		case float64:
			limits[key] = fmt.Sprintf("%.0f", v)
		default:
			return fmt.Errorf("%s: want a number", key)
		}
	}
	return nil
}

// bucketPair is a bucket as nydusify build has it: with a prefix for the names of
// blobs, and one for those of bootstraps.
type bucketPair struct {
	kind        string
	blobConfig  []byte
	blobs, meta *object.Bucket
}

func (p *bucketPair) close() {
	for _, b := range []*object.Bucket{p.blobs, p.meta} {
		if b != nil {
			_ = b.Close()
		}
	}
}

// openBuckets opens what the flags of a backend name, whose configuration may have
// blob_prefix and meta_prefix in place of object_prefix.
func openBuckets(o backendOptions) (p bucketPair, err error) {
	o.kind = cmp.Or(o.kind, "oss")
	p.kind = o.kind
	raw := []byte(o.config)
	if o.configFile != "" {
		if o.config != "" {
			return p, &usageError{errors.New("--backend-config conflicts with --backend-config-file")}
		}
		if raw, err = os.ReadFile(o.configFile); err != nil {
			return p, &usageError{fmt.Errorf("--backend-config-file: %w", err)}
		}
		o.configFile = ""
	}
	var all map[string]any
	if err := decodeJSON(raw, &all); err != nil {
		return p, &usageError{fmt.Errorf("--backend-config: %w", err)}
	}
	prefixes := map[string]any{"blob": all["object_prefix"], "meta": all["object_prefix"]}
	for what := range prefixes {
		if own := all[what+"_prefix"]; own != nil {
			prefixes[what] = own
		}
	}
	delete(all, "blob_prefix")
	delete(all, "meta_prefix")
	for what, to := range map[string]**object.Bucket{"blob": &p.blobs, "meta": &p.meta} {
		delete(all, "object_prefix")
		if prefixes[what] != nil {
			all["object_prefix"] = prefixes[what]
		}
		one, err := json.Marshal(all)
		if err != nil {
			return p, err
		}
		if what == "blob" {
			p.blobConfig = one
		}
		o.config = string(one)
		place, err := o.open()
		if err == nil && place.bucket == nil {
			err = &usageError{fmt.Errorf("--backend-type %s: want oss or s3", o.kind)}
		}
		if err != nil {
			p.close()
			return bucketPair{}, err
		}
		*to = place.bucket
	}
	return p, nil
}

// put stores an image, the bootstrap last, and returns where.
func (p *bucketPair) put(ctx context.Context, boot, blob string) (string, string, error) {
	if blob != "" {
		if err := putFile(ctx, p.blobs, blob, false); err != nil {
			return "", "", err
		}
		blob = fmt.Sprintf("%s in %s", filepath.Base(blob), p.blobs)
	}
	err := putFile(ctx, p.meta, boot, true)
	return fmt.Sprintf("%s in %s", filepath.Base(boot), p.meta), blob, err
}

// putFile stores a blob, or what has a name of its own and replaces what has it.
func putFile(ctx context.Context, b *object.Bucket, path string, named bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := b.Put(ctx, filepath.Base(path), f, st.Size(), object.PutOptions{Force: named, Named: named}); err != nil {
		return fmt.Errorf("%s to %s: %w (what was made is in the output folder)", path, b, err)
	}
	return nil
}
