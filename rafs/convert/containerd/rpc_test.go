package containerd

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/rafsd/rafsd/internal/testenv"
)

// serve answers at a socket as a handler says.
func serve(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	address := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: handler, Protocols: &protocols}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l)
	}()
	c := New("unix://"+address, "ns")
	t.Cleanup(func() {
		_ = c.Close()
		_ = server.Close()
		<-ended
	})
	return c
}

// answer is a message as it is sent.
func answer(message string) string {
	return string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))) + message
}

func TestCall(t *testing.T) {
	testenv.LeakCheck(t)
	for _, tc := range []struct {
		name, body, status, message, want string
	}{
		{"an answer", answer("yes"), "0", "", ""},
		{"no answer", "", "5", "no%20such%20thing%25", "containerd refused Tasks/Get: no such thing% (status 5)"},
		{"an error after an answer", answer("yes"), "13", "broken", "broken (status 13)"},
		{"not there", "", "14", "starting", "starting (status 14)"},
		{"a status that is none", answer("yes"), "x", "", "status 0"},
		{"cut off", answer("yes")[:6], "0", "", "read answer of 3 bytes: unexpected EOF"},
		{"no message", "", "0", "", "read answer: EOF"},
		{"too long", "\x00\x01\x00\x00\x01", "0", "", "answer of 16777217 bytes"},
		{"compressed", "\x01\x00\x00\x00\x01x", "0", "", "compression 1"},
		{"two messages", answer("yes") + answer("no"), "0", "", "7 bytes too many"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/containerd.services.tasks.v1.Tasks/Get" || r.Header.Get("Containerd-Namespace") != "ns" || r.Header.Get("Te") != "trailers" {
					t.Errorf("request %s %v", r.URL, r.Header)
				}
				w.Header().Set("Content-Type", "application/grpc")
				if tc.body != "" {
					w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
					_, _ = w.Write([]byte(tc.body))
				}
				w.Header().Set("Grpc-Status", tc.status)
				w.Header().Set("Grpc-Message", tc.message)
			})
			got, err := c.call(t.Context(), "Tasks", "Get", strings1("id"))
			if tc.want == "" {
				if err != nil || string(got) != "yes" {
					t.Errorf("got %q, %v, want yes", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if got, want := errors.Is(err, ErrNotFound), tc.status == "5"; got != want {
				t.Errorf("%v is ErrNotFound: %t, want %t", err, got, want)
			}
			if got, want := errors.As(err, new(*UnreachableError)), tc.status == "0" || tc.status == "14"; got != want {
				t.Errorf("%v is an UnreachableError: %t, want %t", err, got, want)
			}
		})
	}
}

// A call ends with its context, and what is no gRPC is told as such.
func TestCallEnds(t *testing.T) {
	testenv.LeakCheck(t)
	asked := make(chan struct{})
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if _, err := c.call(ctx, "Tasks", "Get", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: got %v", err)
	}
	c = serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	if _, err := c.call(t.Context(), "Tasks", "Get", nil); err == nil || !strings.Contains(err.Error(), "HTTP status 404") {
		t.Errorf("a web server: got %v", err)
	}
}

func TestDecode(t *testing.T) {
	// As containerd encodes them; fields that nobody asks for are between.
	var c []byte
	for tag, v := range []string{1: "id", 2: "label", 3: "image", 6: "overlayfs", 7: "key", 9: "time", 11: "sandbox"} {
		if v != "" {
			c = protowire.AppendString(protowire.AppendTag(c, protowire.Number(tag), protowire.BytesType), v)
		}
	}
	c = protowire.AppendFixed64(protowire.AppendTag(c, 99, protowire.Fixed64Type), 1)
	got, err := decodeContainer(c)
	if diff := cmp.Diff(&Container{"id", "image", "overlayfs", "key"}, got); diff != "" || err != nil {
		t.Errorf("container (-want +got), %v:\n%s", err, diff)
	}
	p := protowire.AppendVarint(protowire.AppendTag(nil, 3, protowire.VarintType), 4711)
	p = protowire.AppendVarint(protowire.AppendTag(p, 4, protowire.VarintType), 4)
	if task, err := decodeProcess(p); err != nil || task != (Task{4711, Paused}) || !task.Lives() || task.Status.String() != "paused" {
		t.Errorf("process: got %+v, %v", task, err)
	}
	if got := Status(9).String(); got != "status 9" {
		t.Errorf("status 9: got %q", got)
	}
	for _, bad := range []string{"\x0a", "\x0a\x05ab", "\x08\xff", "\x07"} {
		if _, err := decodeContainer([]byte(bad)); err == nil {
			t.Errorf("%q: got no error", bad)
		}
	}
}

// What a snapshotter says of a root is the upper folder of one overlay, or refused.
func TestUpper(t *testing.T) {
	mountOf := func(kind string, options ...string) (b []byte) {
		b = protowire.AppendString(protowire.AppendTag(b, 1, protowire.BytesType), kind)
		b = protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), "/source")
		for _, o := range options {
			b = protowire.AppendString(protowire.AppendTag(b, 4, protowire.BytesType), o)
		}
		return b
	}
	overlay := []string{"workdir=/s/7/work", "upperdir=/s/7/fs", "lowerdir=/s/6/fs:/s/5/fs", "index=off"}
	for _, tc := range []struct {
		name   string
		mounts [][]byte
		want   string // "" if refused
	}{
		{"overlayfs", [][]byte{mountOf("overlay", overlay...)}, "/s/7/fs"},
		{"nydus", [][]byte{mountOf("fuse.nydus-overlayfs", append(overlay, "extraoption=e30=")...)}, "/s/7/fs"},
		{"an image without layers", [][]byte{mountOf("bind", "rw", "rbind")}, ""},
		{"a view", [][]byte{mountOf("overlay", "lowerdir=/a:/b")}, ""},
		{"a block device", [][]byte{mountOf("ext4", "upperdir=/a")}, ""},
		{"two mounts", [][]byte{mountOf("overlay", overlay...), mountOf("overlay", overlay...)}, ""},
		{"nothing", nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var mounts []byte
			for _, m := range tc.mounts {
				mounts = protowire.AppendBytes(protowire.AppendTag(mounts, 1, protowire.BytesType), m)
			}
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				request, _ := io.ReadAll(r.Body)
				if want := answer("\x0a\x01s\x12\x01k"); r.URL.Path != "/containerd.services.snapshots.v1.Snapshots/Mounts" || string(request) != want {
					t.Errorf("request %s %q, want %q", r.URL, request, want)
				}
				w.Header().Set("Trailer", "Grpc-Status")
				_, _ = w.Write([]byte(answer(string(mounts))))
				w.Header().Set("Grpc-Status", "0")
			})
			got, err := c.Upper(t.Context(), &Container{ID: "c", Snapshotter: "s", SnapshotKey: "k"})
			if got != tc.want && err == nil || tc.want != "" && err != nil || tc.want == "" && !errors.Is(err, ErrNoUpper) {
				t.Errorf("got %q, %v, want %q", got, err, tc.want)
			}
		})
	}
}

// Whatever the bytes are, they are refused or are what protowire finds in them.
func FuzzMessage(f *testing.F) {
	f.Add(strings1("a", "b"))
	f.Add([]byte("\x18\x67\x20\x04\x0a\x05abc"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		err := eachField(b, func(field) error { n++; return nil })
		want, rest := 0, b
		for len(rest) > 0 {
			_, kind, size := protowire.ConsumeField(rest)
			if size < 0 {
				break
			}
			if kind == protowire.VarintType || kind == protowire.BytesType {
				want++
			}
			rest = rest[size:]
		}
		if (err == nil) != (len(rest) == 0) || n != want {
			t.Errorf("%d fields, %v; protowire finds %d and leaves %d bytes", n, err, want, len(rest))
		}
		_, _ = decodeContainer(b)
		_, _ = decodeProcess(b)
		_, _ = decodeMount(b)
		_, _ = decodeTarget(b)
	})
}
