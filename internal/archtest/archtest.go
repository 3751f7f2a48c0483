// Package archtest holds the rules of this code base that no compiler checks:
// which package may import which, where unsafe, net/http and os.Exit may appear,
// how long a function may be, that everything is gofmt'd. Its tests read the
// source files of the module; a bare Go toolchain is enough to run them.
//
// The package exports the table only. Nothing imports it.
package archtest

// Table is the import table. A line is a level and the packages on it, relative
// to the module; "a/{b,c}" names two, "a/..." names a and everything below it.
// Imports go to a lower level only, or from a package to its own sub-packages
// and along [Peers]. docs/architecture.md shows the same table.
const Table = `
6  cmd/rafsd  e2e/...  shim-integration
5  daemon
4  daemon/{device,keeper,api,metrics,config,mux,passthrough}/...
3  rafs/rafsfs  rafs/convert/...  rafs/build  rafs/export
2  rafs/build/{spill,chunk,tree,write,source}/...  rafs/check  rafs/blob/fetch  rafs/artifact/...
1  rafs/image  vhostuser  vhostuser/virtq  rafs/blob/{backend/...,cache,codec/...}
0  rafs/blob  rafs/layout/...  vhostuser/guestmem
`

// Peers are the imports that are allowed although they stay on one level.
var Peers = map[string][]string{
	// Each of these stands on the ones before it: spill, chunk, tree, write and source.
	"rafs/build/chunk":      {"rafs/build/spill"},
	"rafs/build/tree":       {"rafs/build/spill", "rafs/build/chunk"},
	"rafs/build/write":      {"rafs/build/spill", "rafs/build/chunk", "rafs/build/tree"},
	"rafs/build/source/...": {"rafs/build/spill", "rafs/build/chunk", "rafs/build/tree", "rafs/build/write"},
	"rafs/build":            {"rafs/export"},
	// What is taken out of a blob to be checked may be large.
	"rafs/check":            {"rafs/build/spill"},
	"rafs/artifact/store":   {"rafs/artifact"},
	"rafs/convert/...":      {"rafs/build", "rafs/export", "rafs/convert"},
	"rafs/blob/backend/...": {"rafs/blob/backend", "rafs/blob/backend/httprange", "rafs/blob/backend/object"},
	// A unit is decoded as a chunk is, or inflated.
	"rafs/blob/codec/unit": {"rafs/blob/codec", "rafs/blob/codec/zran"},
	// The host's side of a test drives what runs in the guest.
	"e2e/...": {"e2e/...", "guest/..."},
}

// Never are imports that are refused although they go downwards.
var Never = map[string][]string{
	// A daemon that serves has no business writing images.
	"daemon/...": {"rafs/build/...", "rafs/convert", "rafs/check", "rafs/export"},
	// The ring side and the image side meet in daemon/device only.
	"vhostuser/...": {"rafs/..."},
	"rafs/...":      {"vhostuser/..."},
	// The whole system is tested from outside, through its binary.
	"e2e/...": {"cmd/...", "daemon/...", "rafs/...", "vhostuser/..."},
}

// TestOnly packages may be imported by test files, by e2e and by one another.
// What they import themselves is limited by nothing but the compiler.
var TestOnly = []string{
	"internal/...", "rafs/rafstest/...", "vhostuser/vhostusertest/...", "rafs/blob/backend/backendtest/...",
}

// Apart packages import nothing of this module but their own sub-packages: they
// run where nothing else of it does.
var Apart = []string{"guest/...", "rafs/rafstest/conform"}

// OnlyIn says which packages may use what. Test files may use net/http anywhere.
var OnlyIn = map[string][]string{
	"unsafe": {"vhostuser/guestmem"},
	"net/http": {
		"rafs/blob/backend/...", "rafs/artifact/...", "rafs/convert", "rafs/convert/containerd", "daemon/api/...", "daemon/metrics",
		"e2e/...", "cmd/...", "shim-integration",
	},
	"reflect":                           {"daemon/config", "internal/..."},
	"github.com/hanwen/go-fuse/v2/fuse": {"daemon", "daemon/device", "daemon/mux", "daemon/passthrough", "rafs/rafsfs"},
}

// Budgets in lines. Tests get more, for their tables.
const (
	maxFunc, maxTestFunc = 60, 120
	maxFile, maxTestFile = 500, 800
)

// LongFuncs are the functions over budget, each with its reason.
var LongFuncs = map[string]string{}

// BadNames are package names that say nothing of what is inside.
var BadNames = []string{"util", "utils", "common", "helper", "helpers", "types", "misc", "manager", "base", "testutil"}
