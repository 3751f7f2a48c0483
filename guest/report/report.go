// Package report is what a guest and its host say to each other: the
// configuration that travels on the kernel's command line, and the requests and
// events that travel as JSON lines over a virtio-serial port. The console is left
// to the kernel; nothing is read from it.
//
// The guest trusts its host. The host takes nothing from a guest but these lines,
// bounded by [MaxLine], and never acts on what they say beyond recording it.
//
// The package imports the standard library only: it is part of the guest's init.
package report

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/rafsd/rafsd/guest/probe"
)

// PortName is the name of the virtio-serial port between guest and host.
const PortName = "rafsd.guest"

// MaxLine bounds one line on the port, in bytes, in both directions. The longest
// lines are tree entries: 64 KiB of extended attributes in hexadecimal digits.
const MaxLine = 1 << 20

const (
	param = "rafsd.config="
	// onPort stands where a configuration would be too long: it then comes as the
	// first line on the port.
	onPort = "@port"
	// maxParam leaves room for the other parameters within the 2048 bytes that
	// the kernel keeps of its command line on x86 (COMMAND_LINE_SIZE).
	maxParam = 1400
)

// Config says what init is to do once the kernel has started it.
type Config struct {
	// Tag is the virtio-fs tag to mount; empty mounts nothing.
	Tag string `json:"tag,omitempty"`
	// Run is the command to run on a writable overlay of the mount, after which
	// the guest powers off. Nil makes init answer requests instead.
	Run *Command `json:"run,omitempty"`
}

// Command is a program in the image's root file system with what an image's
// configuration says about its start.
type Command struct {
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	// Dir is the working directory; empty is "/".
	Dir string `json:"dir,omitempty"`
	// User is an OCI user: "", "name", "uid", "name:group", "uid:gid". Names are
	// looked up in the image's own /etc/passwd and /etc/group.
	User string `json:"user,omitempty"`
}

// Request ops.
const (
	OpTree   = "tree"        // report every entry under Path
	OpRead   = "read"        // read Paths once and report size and SHA-256 of each
	OpLoop   = "loop"        // read Paths over and over until OpCancel; report each pass
	OpRun    = "run"         // run Command on the overlay
	OpDrop   = "drop-caches" // drop the guest's page, dentry and inode caches
	OpMount  = "mount"       // mount Tag again after OpUmount
	OpUmount = "umount"      // unmount it
	OpCancel = "cancel"      // end the OpLoop request with the id Target
	OpOff    = "poweroff"
	OpReboot = "reboot"
)

// Request is a line from the host. Each is answered by events that carry its ID,
// the last of which is of type [Done]. Requests run side by side.
type Request struct {
	ID      int      `json:"id"`
	Op      string   `json:"op"`
	Path    string   `json:"path,omitempty"`
	Paths   []string `json:"paths,omitempty"`
	Direct  bool     `json:"direct,omitempty"` // read past the guest's page cache (O_DIRECT)
	Command *Command `json:"command,omitempty"`
	Target  int      `json:"target,omitempty"`
}

// Event types.
const (
	Boot    = "boot"    // init runs and has opened the port
	Mounted = "mounted" // the tag is mounted
	Ready   = "ready"   // init answers requests
	Started = "started" // the command is about to be executed
	Output  = "output"  // the command wrote Data to Stream
	Exit    = "exit"    // the command ended: Code, or Signal
	Entry   = "entry"   // one entry of a tree
	File    = "file"    // one file was read
	Pass    = "pass"    // a loop has read all its files once more: Count
	Failed  = "failed"  // init cannot go on: Error
	Done    = "done"    // a request is answered; Error says whether it failed
	Bye     = "bye"     // last line before power off or reboot; the host answers it
)

// Event is a line from the guest.
type Event struct {
	// ID is that of the request it belongs to, 0 for the guest's own life.
	ID   int    `json:"id,omitempty"`
	Type string `json:"type"`
	// Uptime is the guest's own clock, in nanoseconds since its kernel started.
	Uptime int64        `json:"uptime"`
	Error  string       `json:"error,omitempty"`
	Stream string       `json:"stream,omitempty"` // "stdout" or "stderr"
	Data   []byte       `json:"data,omitempty"`
	Code   int          `json:"code,omitempty"`
	Signal string       `json:"signal,omitempty"`
	Entry  *probe.Entry `json:"entry,omitempty"`
	Path   string       `json:"path,omitempty"`
	Size   int64        `json:"size,omitempty"` // bytes read
	SHA256 string       `json:"sha256,omitempty"`
	Count  int          `json:"count,omitempty"`
}

// Parameter encodes c for the kernel's command line: base64 has neither blanks nor
// quotes, which the kernel and boot loaders treat each in their own way. The
// second result is not nil when c is too long for that; it is then the line to
// send first over the port.
func (c Config) Parameter() (string, []byte, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return "", nil, fmt.Errorf("guest configuration: %w", err)
	}
	if base64.RawURLEncoding.EncodedLen(len(text)) > maxParam {
		if len(text) >= MaxLine {
			return "", nil, fmt.Errorf("guest configuration: %d bytes, want less than %d", len(text), MaxLine)
		}
		return param + onPort, append(text, '\n'), nil
	}
	return param + base64.RawURLEncoding.EncodeToString(text), nil, nil
}

// ParseCmdline finds the configuration in the kernel's command line. The second
// result tells that it comes over the port instead.
func ParseCmdline(cmdline string) (Config, bool, error) {
	var c Config
	for word := range strings.FieldsSeq(cmdline) {
		value, found := strings.CutPrefix(word, param)
		if !found {
			continue
		}
		if value == onPort {
			return c, true, nil
		}
		text, err := base64.RawURLEncoding.DecodeString(value)
		if err != nil {
			return c, false, fmt.Errorf("kernel command line: %s: %w", strings.TrimSuffix(param, "="), err)
		}
		if err := json.Unmarshal(text, &c); err != nil {
			return Config{}, false, fmt.Errorf("kernel command line: %s: %w", strings.TrimSuffix(param, "="), err)
		}
		return c, false, nil
	}
	return c, false, fmt.Errorf("kernel command line: no %s", strings.TrimSuffix(param, "="))
}
