package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/convert"
)

func TestBarColumns(t *testing.T) {
	for _, tc := range []struct {
		s       step
		took    time.Duration
		percent string
		amount  string
		rate    string
		left    string
	}{
		{step{total: 5_000_000}, 0, "0%", "0 B / 5.0 MB", "", ""},
		{step{done: 1_000_001, total: 5_000_001}, 2 * time.Second, "20%", "1.0 MB / 5.0 MB", "500.0 kB/s", "8s left"},
		{step{done: 2_000_000}, time.Second, "", "2.0 MB", "2.0 MB/s", ""},
		{step{done: 9, total: 7}, time.Second, "", "9 B", "9 B/s", ""},
		{step{done: 7, total: 7}, time.Second, "100%", "7 B / 7 B", "7 B/s", ""},
		{step{done: 1000, total: 1_000_000}, time.Second, "0%", "1.0 kB / 1.0 MB", "1.0 kB/s", "16m39s left"},
		{step{done: 1000, total: 10_000_000}, time.Second, "0%", "1.0 kB / 10.0 MB", "1.0 kB/s", "2h46m left"},
		{step{done: 1, total: 1 << 60}, time.Second, "0%", "1 B / 1.2 EB", "1 B/s", ">99h left"},
	} {
		s := &tc.s
		got := fmt.Sprint([]string{s.percent(), s.amount(), s.rate(tc.took), s.left(tc.took)})
		if want := fmt.Sprint([]string{tc.percent, tc.amount, tc.rate, tc.left}); got != want {
			t.Errorf("%+v after %v: %s, want %s", tc.s, tc.took, got, want)
		}
	}
}

// Whatever the width, no line reaches its end, and what says most stays longest.
func TestBarLines(t *testing.T) {
	now := time.Unix(100, 0)
	all := []*stepBar{
		{step{label: "layer 1/3 0123456789ab", stage: "converting", done: 123_400_000, total: 999_900_000}, now.Add(-3 * time.Second)},
		{step{label: "layer 2/3 123456789abc", stage: "pushing", done: 5_000}, now.Add(-time.Second)},
		{step{label: strings.Repeat("日本語/", 40) + "rootfs.tar", stage: "reading", done: 1, total: 100}, now},
	}
	for width := 1; width < 300; width++ {
		for height := 1; height < 5; height++ {
			lines := drawLines(all, width, height, now)
			if len(lines) != min(height, 3) {
				t.Fatalf("%d lines in %d rows:\n%s", len(lines), height, strings.Join(lines, "\n"))
			}
			for _, l := range lines {
				if cells(l) > max(width-1, 1) {
					t.Fatalf("a line of %d cells in %d: %q", cells(l), width, l)
				}
			}
		}
	}
	for width, want := range map[int]string{
		30:  "laye…56789ab converting   12%",
		60:  "layer 1… 0123456789ab converting   12%  123.4 MB / 999.9 MB",
		80:  "layer 1/3 0123456789ab converting   12%  123.4 MB / 999.9 MB     22s left",
		90:  "layer 1/3 0123456789ab converting   12%  123.4 MB / 999.9 MB   41.1 MB/s     22s left",
		120: "layer 1/3 0123456789ab converting  [===>                          ]   12%  123.4 MB / 999.9 MB   41.1 MB/s     22s left",
	} {
		if got := drawLines(all[:1], width, 9, now)[0]; got != want {
			t.Errorf("width %d:\n%s, want\n%s", width, got, want)
		}
	}
	if got := drawLines(all, 80, 2, now); got[1] != "and 2 more" {
		t.Errorf("two rows: %q, want the first and how many more there are", got)
	}
}

// terminal understands as much of a terminal as programs that draw bars use.
type terminal struct {
	width int
	rows  []string
	row   int
	col   int
	wraps int // lines that were too long
}

func (v *terminal) Write(p []byte) (int, error) {
	for text := string(p); text != ""; {
		var n, arg int
		switch {
		case strings.HasPrefix(text, "\x1b[J"):
			n = 3
			v.cut()
			v.rows = v.rows[:v.row+1]
		case strings.HasPrefix(text, "\x1b[K"):
			n = 3
			v.cut()
		case strings.HasPrefix(text, "\x1b["):
			if _, err := fmt.Sscanf(text, "\x1b[%dA", &arg); err != nil {
				return 0, fmt.Errorf("unknown sequence %.8q", text)
			}
			n = strings.IndexByte(text, 'A') + 1
			v.row = max(v.row-arg, 0)
		case text[0] == '\r':
			n, v.col = 1, 0
		case text[0] == '\n':
			n, v.col, v.row = 1, 0, v.row+1
		default:
			r := []rune(text)[0]
			n = len(string(r))
			v.put(r)
		}
		for len(v.rows) <= v.row {
			v.rows = append(v.rows, "")
		}
		text = text[n:]
	}
	return len(p), nil
}

func (v *terminal) cut() {
	for len(v.rows) <= v.row {
		v.rows = append(v.rows, "")
	}
	if r := []rune(v.rows[v.row]); len(r) > v.col {
		v.rows[v.row] = string(r[:v.col])
	}
}

func (v *terminal) put(r rune) {
	if v.col == v.width {
		v.row, v.col, v.wraps = v.row+1, 0, v.wraps+1
	}
	for len(v.rows) <= v.row {
		v.rows = append(v.rows, "")
	}
	line := []rune(v.rows[v.row])
	for len(line) <= v.col {
		line = append(line, ' ')
	}
	line[v.col] = r
	v.rows[v.row], v.col = string(line), v.col+1
}

func (v *terminal) text() string {
	var out []string
	for _, r := range v.rows {
		out = append(out, strings.TrimRight(r, " "))
	}
	return strings.Join(out, "\n")
}

// still makes bars that are drawn when the test says so.
func still(out io.Writer, width, height *int) *bars {
	b := &bars{out: out, size: func() (int, int) { return *width, *height }, steps: map[string]*stepBar{}, stop: make(chan struct{})}
	return b
}

// Layers go on side by side; one that is over moves up; the log has its place; what
// the keyboard echoes goes; at the end nothing is left over.
func TestBarsOnScreen(t *testing.T) {
	width, height := 70, 10
	screen := &terminal{width: width}
	b := still(screen, &width, &height)
	layer := func(i int, stage convert.Stage, done, total int64) {
		b.event(convert.Event{Layer: i, Layers: 3, Digest: "sha256:" + strings.Repeat(fmt.Sprint(i), 64), Stage: stage, Done: done, Total: total})
		b.draw(time.Now())
	}
	fmt.Fprintln(screen, "$ rafsd convert a b")
	layer(1, convert.StageRead, 50, 100)
	layer(0, convert.StageRead, 10, 100)
	if want := "$ rafsd convert a b\nlayer 1/3 000000000000 converting   10%         10 B / 100 B\nlayer 2/3 111111111111 converting   50%         50 B / 100 B\n"; screen.text() != want {
		t.Errorf("screen:\n%s\nwant:\n%s", screen.text(), want)
	}
	layer(1, convert.StagePush, 40, 40)
	fmt.Fprint(screen, "^C")
	fmt.Fprintln(b, "level=WARN msg=careful")
	layer(1, convert.StageDone, 40, 40)
	layer(0, convert.StagePush, 1, 0)
	if want := "$ rafsd convert a b\nlevel=WARN msg=careful\nlayer 2/3 111111111111 done  40 B\nlayer 1/3 000000000000 pushing                        1 B\n"; screen.text() != want {
		t.Errorf("screen:\n%s\nwant:\n%s", screen.text(), want)
	}
	b.end(false)
	fmt.Fprintln(screen, "rafsd convert: interrupted")
	want := "$ rafsd convert a b\nlevel=WARN msg=careful\nlayer 2/3 111111111111 done  40 B\n" +
		"layer 1/3 000000000000 pushing: stopped after  1 B\nrafsd convert: interrupted\n"
	if screen.text() != want || screen.wraps > 0 {
		t.Errorf("at the end, after %d wraps:\n%s\nwant:\n%s", screen.wraps, screen.text(), want)
	}
	if _, err := b.Write([]byte("late\n")); err != nil || !strings.HasSuffix(screen.text(), "late\n") {
		t.Errorf("a log line after the end: %v, %s", err, screen.text())
	}
}

// A terminal that becomes narrower breaks the lines that it shows; they are drawn over
// nevertheless.
func TestBarsAfterResize(t *testing.T) {
	width, height := 60, 10
	screen := &terminal{width: width}
	b := still(screen, &width, &height)
	fmt.Fprintln(screen, "$ unpack")
	b.run(step{key: "a", label: "image.boot", stage: "unpacking", done: 5, total: 10})
	b.draw(time.Now())
	long := screen.rows[1]
	width = 20
	cut := []rune(long)
	screen.width, screen.rows, screen.row = width, []string{"$ unpack"}, 1
	for len(cut) > 0 {
		n := min(width, len(cut))
		screen.rows, cut, screen.row = append(screen.rows, string(cut[:n])), cut[n:], screen.row+1
	}
	b.draw(time.Now())
	if got := strings.Count(screen.text(), "\n"); got != 2 || strings.Count(screen.text(), "50%") != 1 {
		t.Errorf("screen after it became narrower:\n%s", screen.text())
	}
	b.end(true)
	if strings.Count(screen.text(), "unpack") > 2 {
		t.Errorf("left over:\n%s", screen.text())
	}
}

// A frame is one write: no terminal shows half of it.
func TestFramesAreWhole(t *testing.T) {
	width, height := 80, 10
	var frames []string
	b := still(writerFunc(func(p []byte) (int, error) { frames = append(frames, string(p)); return len(p), nil }), &width, &height)
	for i := range 3 {
		b.run(step{key: "x", label: "x", stage: "reading", done: int64(i), total: 9})
		b.draw(time.Now())
	}
	b.end(true)
	if len(frames) != 4 || strings.Contains(frames[1], "\x1b[J"+"x") || !strings.HasSuffix(frames[1], "\x1b[J") {
		t.Errorf("frames = %q, want four, each erasing only behind what it drew", frames)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Whatever a conversion reports, the bars end, and end in time.
func TestBarsEnd(t *testing.T) {
	testenv.LeakCheck(t)
	for _, ok := range []bool{true, false} {
		var out bytes.Buffer
		b := newBars(&out, terminalSize(&out))
		for _, e := range []convert.Event{
			{Layer: 0, Layers: 2, Total: 100},
			{Layer: 0, Layers: 2, Done: 60, Total: 100},
			{Layer: 1, Layers: 2},
			{Layer: 0, Layers: 2, Stage: convert.StagePush, Done: 5, Total: 50},
			{Layer: 0, Layers: 2, Stage: convert.StageRead, Done: 5, Total: 100},
			{Layer: 0, Layers: 2, Stage: convert.StageDone, Done: 50, Total: 50},
			{Layer: 1, Layers: 2, Stage: convert.StageDone},
			{Layer: 0, Layers: 2, Stage: convert.StageRead, Done: 5, Total: 100},
			{Layer: -1, Layers: 2, Stage: convert.StagePush, Done: 1, Total: 9},
		} {
			e.Digest = "sha256:" + strings.Repeat("a", 64)
			b.event(e)
		}
		b.end(ok)
		if n := strings.Count(out.String(), "layer 1/2 aaaaaaaaaaaa done  50 B"); n != 1 {
			t.Errorf("ok %t: %d times done, the bars show %q", ok, n, out.String())
		}
		if stopped := strings.Contains(out.String(), "bootstrap aaaaaaaaaaaa pushing: stopped after  1 B / 9 B"); stopped == ok {
			t.Errorf("ok %t: the bars show %q", ok, out.String())
		}
	}
}

// openTerminal opens a pseudo-terminal (pts(4)).
func openTerminal(t *testing.T, width, height uint16) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	must(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	must(t, err)
	must(t, unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width}))
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// onTerminal runs this program with a terminal for its three descriptors, types what
// the test says when the program has drawn something, and returns what it drew.
func onTerminal(t *testing.T, width uint16, env []string, typed string, args ...string) (screen *terminal, raw string, code int) {
	t.Helper()
	self, err := exec.LookPath("rafsd")
	must(t, err)
	master, slave := openTerminal(t, width, 24)
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	must(t, cmd.Start())
	must(t, slave.Close())
	screen = &terminal{width: int(width)}
	var wg sync.WaitGroup
	wg.Go(func() {
		var all []byte
		buf := make([]byte, 64<<10)
		for {
			n, err := master.Read(buf) // EIO when nobody has the other side any more
			if err != nil {
				raw = string(all)
				return
			}
			if all = append(all, buf[:n]...); typed != "" && bytes.Contains(all, []byte("reading")) {
				_, _ = io.WriteString(master, typed)
				typed = ""
			}
		}
	})
	_ = cmd.Wait()
	wg.Wait()
	_, err = io.WriteString(screen, raw)
	if err != nil {
		t.Errorf("%v in %q", err, raw)
	}
	return screen, raw, cmd.ProcessState.ExitCode()
}

// The program itself on a terminal: bars where it can draw, lines where it cannot, and
// a clean screen after Ctrl-C.
func TestTerminal(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "layer.tar")
	list := ""
	for i := range 40 {
		list += fmt.Sprintf("big f%d %d\n", i, 1<<20)
	}
	b, err := makeTar(list)
	must(t, err)
	must(t, os.WriteFile(source, b, 0o644))
	create := func(source string) []string {
		return []string{"image", "create", "-t", "tar-rafs", "-B", filepath.Join(dir, "image.boot"), "-D", dir, source}
	}
	for _, width := range []uint16{20, 80, 200} {
		screen, raw, code := onTerminal(t, width, []string{"TERM=xterm"}, "", create(source)...)
		if code != 0 || !strings.Contains(screen.text(), "done  ") || strings.Contains(screen.text(), "reading") {
			t.Errorf("width %d: code %d, screen:\n%s", width, code, screen.text())
		}
		if strings.Contains(raw, "\x1b[3") || strings.Contains(raw, "\x1b[?") {
			t.Errorf("colours, or modes of the terminal: %q", raw)
		}
	}
	for _, kind := range []string{"dumb", ""} {
		_, raw, code := onTerminal(t, 80, []string{"TERM=" + kind}, "", create(source)...)
		if code != 0 || strings.Contains(raw, "\x1b") || !strings.Contains(raw, "layer.tar: reading") {
			t.Errorf("TERM=%q: code %d, %q, want lines", kind, code, raw)
		}
	}

	// A source that never ends, and a key.
	fifo := filepath.Join(dir, "endless.tar")
	must(t, unix.Mkfifo(fifo, 0o600))
	writer, err := os.OpenFile(fifo, os.O_RDWR, 0)
	must(t, err)
	defer writer.Close()
	feeding := make(chan struct{})
	go func() { defer close(feeding); _, _ = writer.Write(b) }()
	screen, _, code := onTerminal(t, 100, []string{"TERM=xterm"}, "\x03", create(fifo)...)
	writer.Close()
	<-feeding
	lines := slices.DeleteFunc(strings.Split(screen.text(), "\n"), func(l string) bool { return l == "" })
	if code != exitInterrupted || len(lines) != 2 || !strings.Contains(lines[0], "reading: stopped after") || lines[1] != "rafsd image create: interrupted" {
		t.Errorf("after Ctrl-C: code %d, screen:\n%s", code, screen.text())
	}
}
