package main

import (
	"log/slog"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// raiseNoFile asks for a limit of open files. What the system refuses is not
// needed to start, so it costs a warning.
func raiseNoFile(want uint64, log *slog.Logger) {
	if want == 0 {
		return
	}
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		log.Warn("the limit of open files cannot be read", "err", err)
		return
	}
	ask := unix.Rlimit{Cur: want, Max: max(want, have.Max)}
	err := unix.Setrlimit(unix.RLIMIT_NOFILE, &ask)
	if err == nil {
		return
	}
	if want > have.Max {
		// More than the hard limit is the privilege of few: take what there is.
		ask = unix.Rlimit{Cur: have.Max, Max: have.Max}
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &ask) == nil {
			have.Cur = have.Max
		}
	}
	log.Warn("the system refuses the limit of open files; going on with what there is",
		"asked", want, "limit", have.Cur, "err", err)
}

// servingGCPercent trades processor time for memory: a daemon that serves warm
// reads makes next to no garbage, and there may be hundreds of it on a node.
const servingGCPercent = 50

// trimHeap keeps the heap of a serving process small, unless GOGC says how large
// it may become.
func trimHeap(getenv func(string) string) {
	if getenv("GOGC") == "" {
		debug.SetGCPercent(servingGCPercent)
	}
}

// What a conversion may use of memory: output is a stream, and most garbage is
// buffers, so that collecting more often costs little. The limit is a soft one,
// below 64 MB with what the program itself takes.
const (
	buildingGCPercent   = 50
	buildingMemoryLimit = 32 << 20
)

// limitHeap keeps the heap of a conversion small, unless GOGC or GOMEMLIMIT say how
// large it may become.
func limitHeap(getenv func(string) string) {
	if getenv("GOGC") == "" {
		debug.SetGCPercent(buildingGCPercent)
	}
	if getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(buildingMemoryLimit)
	}
}
