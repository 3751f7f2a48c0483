//go:build race

package export_test

// The race detector takes several times the memory, and a limit of the heap that
// does not count it would have the collector run without end.
func init() { raced = true }
