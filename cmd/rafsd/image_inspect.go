package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

func (a *app) imageInspect() *cobra.Command {
	f := &bootstrapFlags{}
	var request string
	cmd := &cobra.Command{
		Use:   "inspect [BOOTSTRAP]",
		Short: "Look around in an image, at a prompt or by one request",
		Long: `Look around in an image: at a prompt, or with --request by one request, whose answer is JSON.
Requests are those of the prompt; help lists them. 'rafsd inspect' shows more at a glance.`,
		Example: `  rafsd image inspect image.boot
  rafsd image inspect -R blobs image.boot
  rafsd image inspect -R "stat usr" image.boot`,
		Args: args(cobra.MaximumNArgs(1), "one BOOTSTRAP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := f.path(args)
			if err != nil {
				return err
			}
			im, err := image.Open(path, image.Options{InlineBlobID: inlineID(path), InFile: true})
			if err != nil {
				return err
			}
			defer im.Close()
			p := newPrompt(cmd.Context(), im, a.stdout)
			if cmd.Flags().Changed("request") {
				return p.request(request)
			}
			return p.loop(a.stdin)
		},
	}
	flags := cmd.Flags()
	f.register(flags, "accepted for nydus-image's callers: blobs are not read")
	flags.StringVarP(&request, "request", "R", "", "answer this request and end")
	return cmd
}

// prompt answers requests about an image (nydus src/bin/nydus-image/inspect.rs).
type prompt struct {
	ctx   context.Context
	im    *image.Image
	out   io.Writer
	asked bool   // by one request: answers are JSON where nydus-image's are
	root  uint64 // nid of the root, v6
	// dirs are the folders from the root to the current one.
	dirs []uint64
}

func newPrompt(ctx context.Context, im *image.Image, out io.Writer) *prompt {
	p := &prompt{ctx: ctx, im: im, out: out, dirs: []uint64{image.Root}, root: 1}
	if im.Super().Version == 6 {
		// The image is open: there is a superblock.
		super, _ := v6.DecodeSuper(im.Bytes()[v6.SuperOffset:])
		p.root = uint64(super.RootNID)
	}
	return p
}

// number is the number that nydus-image has for a node: a nid, or in v5 an inode
// number.
func (p *prompt) number(node uint64) uint64 {
	switch {
	case node == image.Root:
		return p.root
	case p.im.Super().Version == 6:
		return node - 2 // rafs/image keeps nids apart from 0 and the root
	}
	return node
}

// node is the inverse of number.
func (p *prompt) node(number uint64) uint64 {
	switch {
	case number == p.root:
		return image.Root
	case p.im.Super().Version == 6:
		return number + 2
	}
	return number
}

// Why a request has no answer.
var (
	errRequest  = errors.New("unsupported inspect request")
	errArgument = errors.New("invalid arguments in inspect request")
	errExit     = errors.New("exit")
)

// request answers one request with JSON, null if there is nothing to say.
func (p *prompt) request(line string) error {
	p.asked = true
	v, err := p.execute(line)
	if errors.Is(err, errExit) {
		v, err = nil, nil
	}
	if err != nil {
		if errors.Is(err, errRequest) || errors.Is(err, errArgument) {
			return fmt.Errorf("%w %q", err, line)
		}
		return fmt.Errorf("inspect request %q: %w", line, err)
	}
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = p.out.Write(data)
	return err
}

// loop answers requests until the input or the user's patience ends.
func (p *prompt) loop(in io.Reader) error {
	lines := bufio.NewScanner(in)
	for {
		fmt.Fprint(p.out, "Inspecting RAFS :> ")
		if !lines.Scan() {
			fmt.Fprintln(p.out)
			return lines.Err()
		}
		_, err := p.execute(lines.Text())
		switch {
		case errors.Is(err, errExit):
			return nil
		case p.ctx.Err() != nil:
			return p.ctx.Err()
		case err != nil && !errors.Is(err, errRequest) && !errors.Is(err, errArgument):
			fmt.Fprintf(p.out, "Failed to execute command, %v\n", err)
		}
	}
}

const promptHelp = `
    stats:              what the image says of itself
    ls:                 names in the current folder
    cd DIR:             go to a folder
    stat NAME:          attributes and chunks of a file
    blobs:              the blobs
    prefetch:           what is to be fetched first
    chunk OFFSET:       chunks at an offset of a blob, and the files that have them
    icheck INODE:       paths and attributes of an inode
    exit:               leave
`

// execute answers one line, by printing or, where a request asks for it, by a value
// for JSON.
func (p *prompt) execute(line string) (any, error) {
	words := strings.Fields(line)
	if len(words) == 0 {
		return nil, nil
	}
	verb, arg := words[0], ""
	if len(words) > 1 {
		arg = words[1]
	}
	switch {
	case verb == "help":
		fmt.Fprint(p.out, promptHelp)
		if p.asked {
			return nil, errors.New("help is not supported in inspect request mode")
		}
		return nil, nil
	case verb == "exit" || verb == "q":
		return nil, errExit
	case verb == "stats" && arg == "":
		return p.stats()
	case verb == "ls" && arg == "":
		return nil, p.list()
	case verb == "cd" && arg != "":
		return nil, p.changeDir(arg)
	case verb == "stat" && arg != "":
		return nil, p.stat(arg)
	case verb == "blobs" && arg == "":
		return p.blobs()
	case verb == "prefetch" && arg == "":
		return p.prefetch()
	case (verb == "chunk" || verb == "icheck") && arg != "":
		n, err := strconv.ParseUint(arg, 10, 64)
		if err != nil {
			fmt.Fprintf(p.out, "%q is no number\n", arg)
			return nil, errArgument
		}
		if verb == "chunk" {
			return nil, p.chunk(n)
		}
		return nil, p.check(n)
	}
	fmt.Fprintf(p.out, "Unsupported command: %s\n%s", plain(verb), promptHelp)
	return nil, errRequest
}
