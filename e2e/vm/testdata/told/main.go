// Command told runs in a guest and says as what: its arguments, environment, folder,
// user and groups. Then it ends as its first argument wants.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "sleep" {
		select {}
	}
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	groups, err := os.Getgroups()
	if err != nil {
		panic(err)
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"args": os.Args, "env": os.Environ(), "dir": dir, "uid": os.Getuid(), "gid": os.Getgid(), "groups": groups,
	})
	fmt.Fprintln(os.Stderr, "on stderr")
	switch os.Args[1] {
	case "exit":
		code, _ := strconv.Atoi(os.Args[2])
		os.Exit(code)
	case "die":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "leave":
		// A daemon with its own session keeps the pipes open.
		cmd := exec.Command("/proc/self/exe", "sleep")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			panic(err)
		}
	case "write":
		if err := os.WriteFile(os.Args[2], []byte("x"), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}
