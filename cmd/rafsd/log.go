package main

import (
	"bytes"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/time/rate"
)

// levelTrace is below debug, as nydusd's trace is.
const levelTrace = slog.LevelDebug - 4

// logFlags are nydusd's, and a format.
type logFlags struct {
	level, file, format string
	rotateMB            int64
}

func (l *logFlags) register(fs *pflag.FlagSet) {
	fs.StringVarP(&l.level, "log-level", "l", "info", "least level that is logged: trace, debug, info, warn or error")
	fs.StringVarP(&l.file, "log-file", "L", "", "log to this file instead of stderr; .log is added to a name without extension")
	fs.Int64Var(&l.rotateMB, "log-rotation-size", 0, "start a new log file after so many MB, keeping five; 0 for never")
	fs.StringVar(&l.format, "log-format", "text", "text or json")
}

// open makes the logger. The function it returns writes what is left and closes it.
func (l *logFlags) open(stderr io.Writer) (*slog.Logger, func(), error) {
	level, err := parseLevel(l.level)
	if err != nil {
		return nil, nil, err
	}
	if l.format != "text" && l.format != "json" {
		return nil, nil, &usageError{fmt.Errorf("--log-format %s: want text or json", l.format)}
	}
	if l.rotateMB < 0 || l.rotateMB > 1<<20 {
		return nil, nil, &usageError{fmt.Errorf("--log-rotation-size %d: want 0 to %d MB", l.rotateMB, 1<<20)}
	}
	out, closeFile := stderr, func() {}
	if l.file != "" {
		path := l.file
		if filepath.Ext(path) == "" {
			path += ".log"
		}
		f, err := openRotating(path, l.rotateMB<<20)
		if err != nil {
			return nil, nil, fmt.Errorf("--log-file: %w", err)
		}
		out, closeFile = f, func() { f.Close() }
	}
	sink := newSink(out)
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: nameTrace}
	var handler slog.Handler = slog.NewTextHandler(sink, options)
	if l.format == "json" {
		handler = slog.NewJSONHandler(sink, options)
	}
	log := slog.New(handler)
	restore := takeGlobal(log)
	return log, func() { restore(); sink.Close(); closeFile() }, nil
}

// takeGlobal sends what libraries write to the global logger to log: one line a
// second, because a guest can make go-fuse write there as often as it likes, and
// without waiting for whoever reads stderr. The function it returns undoes that.
func takeGlobal(log *slog.Logger) (restore func()) {
	out, flags := stdlog.Writer(), stdlog.Flags()
	stdlog.SetOutput(&libraryLog{log: log, quiet: rate.Sometimes{Interval: time.Second}})
	stdlog.SetFlags(0)
	return func() { stdlog.SetOutput(out); stdlog.SetFlags(flags) }
}

type libraryLog struct {
	log   *slog.Logger
	quiet rate.Sometimes
}

func (l *libraryLog) Write(line []byte) (int, error) {
	l.quiet.Do(func() { l.log.Warn("message of a library", "text", string(bytes.TrimSpace(line))) })
	return len(line), nil
}

func parseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "trace":
		return levelTrace, nil
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, &usageError{fmt.Errorf("--log-level %s: want trace, debug, info, warn or error", s)}
}

// nameTrace prints TRACE where slog would say DEBUG-4.
func nameTrace(groups []string, attr slog.Attr) slog.Attr {
	if len(groups) == 0 && attr.Key == slog.LevelKey && attr.Value.Any() == levelTrace {
		attr.Value = slog.StringValue("TRACE")
	}
	return attr
}
