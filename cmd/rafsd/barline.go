package main

import (
	"fmt"
	"strings"
	"time"
	"unicode"
)

// Cells of the columns of a line. Each begins with two spaces.
const (
	percentCells = 2 + len("100%")
	amountCells  = 2 + len("999.9 MB / 999.9 MB")
	leftCells    = 2 + len("59m59s left")
	rateCells    = 2 + len("999.9 MB/s")
	minBarCells  = 2 + 12
	maxBarCells  = 2 + 42
)

// drawLines draws what goes on, at most so many lines, none of which reaches the last
// cell of a row: what a terminal does then differs.
func drawLines(all []*stepBar, width, height int, now time.Time) []string {
	width = max(width-1, 1)
	more := 0
	if len(all) > height {
		more = len(all) - height + 1
		all = all[:height-1]
	}
	wanted := 0
	for _, l := range all {
		wanted = max(wanted, cells(l.label)+1+cells(l.stage))
	}
	// The head has half of a narrow line; the rest goes to what says most.
	head := min(wanted, max(width/2, width-percentCells-amountCells-leftCells-rateCells-minBarCells))
	left := width - head
	take := func(n int) bool {
		if left < n {
			return false
		}
		left -= n
		return true
	}
	percent := take(percentCells)
	amount := percent && take(amountCells)
	eta := amount && take(leftCells)
	rate := eta && take(rateCells)
	bar := 0
	if rate && left >= minBarCells {
		bar = min(left, maxBarCells) - 2
	} else {
		head = min(wanted, head+left)
	}
	var lines []string
	for _, l := range all {
		took := now.Sub(l.since)
		line := pad(l.head(head), head)
		if bar > 0 {
			line += "  " + l.bar(bar, took)
		}
		for _, c := range []struct {
			show bool
			n    int
			text string
		}{{percent, percentCells, l.percent()}, {amount, amountCells, l.amount()}, {rate, rateCells, l.rate(took)}, {eta, leftCells, l.left(took)}} {
			if c.show {
				line += strings.Repeat(" ", max(c.n-cells(c.text), 2)) + c.text
			}
		}
		lines = append(lines, strings.TrimRight(shorten(line, width), " "))
	}
	if more > 0 {
		lines = append(lines, shorten(fmt.Sprintf("and %d more", more), width))
	}
	return lines
}

// last is the line that stays of a thing.
func (s *step) last(width int) string {
	tail := "  " + decimalText(uint64(max(s.total, s.done, 0)))
	if !s.over {
		tail = "  " + s.amount()
	}
	return shorten(s.head(max(width-cells(tail), 1))+tail, width)
}

// head is the name of the thing and what happens to it. Of names that are too long the
// middle is left out.
func (s *step) head(width int) string {
	room := width - 1 - cells(s.stage)
	label := s.label
	if n := cells(label); n > room {
		if room < 4 {
			return shorten(label, width)
		}
		first := room / 3
		label = shorten(label, first+1) + lastCells(label, room-first-1)
	}
	return label + " " + s.stage
}

func (s *step) percent() string {
	if s.total <= 0 || s.done > s.total {
		return ""
	}
	return fmt.Sprintf("%d%%", int64(100*float64(s.done)/float64(s.total)))
}

func (s *step) amount() string {
	if s.done <= 0 && s.total <= 0 {
		return ""
	}
	text := decimalText(uint64(max(s.done, 0)))
	if s.total > 0 && s.total >= s.done {
		text += " / " + decimalText(uint64(s.total))
	}
	return text
}

// speed is in bytes a second; 0 while it is too early to tell.
func (s *step) speed(took time.Duration) float64 {
	if s.done <= 0 || took < 500*time.Millisecond {
		return 0
	}
	return float64(s.done) / took.Seconds()
}

func (s *step) rate(took time.Duration) string {
	if v := s.speed(took); v > 0 {
		return decimalText(uint64(v)) + "/s"
	}
	return ""
}

func (s *step) left(took time.Duration) string {
	v := s.speed(took)
	if v <= 0 || s.total <= s.done {
		return ""
	}
	seconds := float64(s.total-s.done) / v
	switch d := time.Duration(seconds*float64(time.Second)) + time.Second - 1; {
	case seconds > 99*3600:
		return ">99h left"
	case d < time.Minute:
		return fmt.Sprintf("%ds left", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds left", d/time.Minute, d%time.Minute/time.Second)
	default:
		return fmt.Sprintf("%dh%02dm left", d/time.Hour, d%time.Hour/time.Minute)
	}
}

// bar is a picture of how much is done; where nobody knows of how much, something
// that moves.
func (s *step) bar(width int, took time.Duration) string {
	inner := width - 2
	if s.total <= 0 || s.done > s.total {
		last := inner - len("<=>")
		at := int(took/redrawEvery) % (2 * last)
		if at > last {
			at = 2*last - at
		}
		return "[" + strings.Repeat(" ", at) + "<=>" + strings.Repeat(" ", last-at) + "]"
	}
	full := int(float64(inner) * float64(s.done) / float64(s.total))
	tip := ""
	if full < inner {
		tip = ">"
	}
	return "[" + strings.Repeat("=", full) + tip + strings.Repeat(" ", inner-full-len(tip)) + "]"
}

// cells is how wide a terminal shows a text.
func cells(s string) (n int) {
	for _, r := range s {
		n += runeCells(r)
	}
	return n
}

func runeCells(r rune) int {
	switch {
	case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	// Wide and fullwidth (Unicode, East Asian Width), by blocks.
	case r >= 0x1100 && (r <= 0x115f || r >= 0x2e80 && r <= 0xa4cf || r >= 0xac00 && r <= 0xd7a3 || r >= 0xf900 && r <= 0xfaff ||
		r >= 0xfe30 && r <= 0xfe6f || r >= 0xff00 && r <= 0xff60 || r >= 0xffe0 && r <= 0xffe6 || r >= 0x1f300 && r <= 0x1faff ||
		r >= 0x20000 && r <= 0x3fffd):
		return 2
	}
	return 1
}

// shorten cuts a text to a width and says so.
func shorten(s string, width int) string {
	if cells(s) <= width {
		return s
	}
	n := 0
	for i, r := range s {
		if n += runeCells(r); n > width-1 {
			return s[:i] + "…"
		}
	}
	return s
}

// lastCells is the end of a text, no wider than that.
func lastCells(s string, width int) string {
	runes := []rune(s)
	i, n := len(runes), 0
	for i > 0 && n+runeCells(runes[i-1]) <= width {
		i--
		n += runeCells(runes[i])
	}
	return string(runes[i:])
}

func pad(s string, width int) string { return s + strings.Repeat(" ", max(width-cells(s), 0)) }
