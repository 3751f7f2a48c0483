package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
)

// memoryUse is the memory of a daemon in bytes, with its children. Guest memory
// is no part of RSS and PSS: how much of it is mapped depends on the load.
type memoryUse struct {
	RSS, PSS uint64
	// PeakRSS is the kernel's high-water mark, guest memory included.
	PeakRSS uint64
	// Anonymous is the part of RSS that no file backs: heaps and stacks.
	Anonymous uint64
}

// noteMemory looks at the daemon and remembers the most that was seen.
func (d *load) noteMemory() error {
	m, err := readMemory(d.cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("%s: memory: %w", d.name, err)
	}
	d.memory.RSS = max(d.memory.RSS, m.RSS)
	d.memory.PSS = max(d.memory.PSS, m.PSS)
	d.memory.PeakRSS = max(d.memory.PeakRSS, m.PeakRSS)
	d.memory.Anonymous = max(d.memory.Anonymous, m.Anonymous)
	return nil
}

func readMemory(pid int) (memoryUse, error) {
	var sum memoryUse
	for _, p := range family(pid) {
		m, err := readProcess(p)
		if err != nil {
			return memoryUse{}, err
		}
		sum.RSS += m.RSS
		sum.PSS += m.PSS
		sum.PeakRSS += m.PeakRSS
		sum.Anonymous += m.Anonymous
	}
	return sum, nil
}

// family is a process with all that it forked.
func family(pid int) []int {
	out := []int{pid}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return out
	}
	for f := range strings.FieldsSeq(string(b)) {
		if child, err := strconv.Atoi(f); err == nil {
			out = append(out, family(child)...)
		}
	}
	return out
}

func readProcess(pid int) (memoryUse, error) {
	var m memoryUse
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			m.PeakRSS = kilobytes(rest)
		}
	}
	smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return m, err
	}
	sumMappings(&m, smaps)
	return m, nil
}

// sumMappings adds up /proc/PID/smaps without the mappings of guest memory.
func sumMappings(m *memoryUse, smaps []byte) {
	guest := false
	lines := bufio.NewScanner(bytes.NewReader(smaps))
	for lines.Scan() {
		key, rest, ok := strings.Cut(lines.Text(), ":")
		switch {
		case !ok || strings.ContainsAny(key, " -"): // a mapping's first line
			guest = strings.Contains(lines.Text(), "/memfd:"+vhostusertest.MemfdName)
		case guest:
		case key == "Rss":
			m.RSS += kilobytes(rest)
		case key == "Pss":
			m.PSS += kilobytes(rest)
		case key == "Anonymous":
			m.Anonymous += kilobytes(rest)
		}
	}
}

func kilobytes(s string) uint64 {
	n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(s), " kB"), 10, 64)
	if err != nil {
		return 0
	}
	return n << 10
}
