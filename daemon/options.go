package daemon

import (
	"log/slog"
	"net"

	"github.com/rafsd/rafsd/daemon/config"
)

// Options say what [Run] serves and where. Config and Log are required, and
// exactly one of Bootstrap and Reference, and one of Socket and Listener.
type Options struct {
	// Socket is the path of the vhost-user socket that Run binds and listens on.
	// A socket that a dead process left there is replaced.
	Socket string
	// Listener is used instead of Socket when the caller has bound it already. Run
	// closes it and leaves its path alone.
	Listener net.Listener

	// Config has been checked ([config.Parse]); flags are merged into it.
	Config *config.Config
	// Bootstrap is the path of an image's metadata file, or of a blob with it
	// inside; or sha256:ID, such a blob of Config.Backend. The blobs come from
	// there. Beside the file may lie chunk information of blobs, ID.blob.meta.
	Bootstrap string
	// Reference names an image in a registry, as HOST/REPO:TAG or @DIGEST. Its
	// manifest and bootstrap are fetched and verified; Config.Backend already
	// names the same host and repository.
	Reference string
	// CacheDir is the folder of the chunk cache; it equals Config.Cache.WorkDir.
	// Empty means that chunks are kept in memory only.
	CacheDir string
	// PrefetchFiles are absolute paths in the image, fetched in this order after
	// the start, instead of the image's own prefetch table.
	PrefetchFiles []string

	// Tag is the virtio-fs tag that the device offers where the VMM asks for one; QEMU
	// and Cloud Hypervisor have it on their command line instead.
	Tag string
	// Queues is the number of request queues beside hiprio, at least 1.
	Queues int

	// Metrics is where Prometheus metrics are served: unix:///PATH or a loopback
	// HOST:PORT; empty for nowhere.
	Metrics string
	// Version is shown in the metrics.
	Version string
	// Log receives every message of the daemon.
	Log *slog.Logger
	// Ready, when not nil, is called once, when a VMM can connect.
	Ready func()
}
