package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// user is who a command runs as.
type user struct {
	uid, gid int
	groups   []int
	home     string
}

// lookupUser resolves an OCI image's user in the files of the root file system
// that this process is in.
func lookupUser(spec string) (user, error) {
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil && !os.IsNotExist(err) {
		return user{}, err
	}
	group, err := os.ReadFile("/etc/group")
	if err != nil && !os.IsNotExist(err) {
		return user{}, err
	}
	return resolveUser(spec, strings.NewReader(string(passwd)), strings.NewReader(string(group)))
}

// resolveUser follows the image specification (config.md, "User"): a name or an
// id, with or without a group; a name without a group brings its own group and the
// supplementary ones.
func resolveUser(spec string, passwd, group io.Reader) (user, error) {
	name, groupName, hasGroup := strings.Cut(spec, ":")
	if name == "" {
		name = "0"
	}
	u := user{uid: -1, home: "/"}
	login := ""
	for f := range rows(passwd, 7) {
		if f[0] != name && f[2] != name {
			continue
		}
		uid, err := number(f[2])
		if err != nil {
			return u, fmt.Errorf("user %q: /etc/passwd: %w", spec, err)
		}
		gid, err := number(f[3])
		if err != nil {
			return u, fmt.Errorf("user %q: /etc/passwd: %w", spec, err)
		}
		u.uid, u.gid, u.home, login = uid, gid, f[5], f[0]
		break
	}
	if u.uid < 0 {
		uid, err := number(name)
		if err != nil {
			return u, fmt.Errorf("user %q: no such name in the image's /etc/passwd", name)
		}
		u.uid = uid
	}
	return u.withGroups(spec, groupName, hasGroup, login, group)
}

func (u user) withGroups(spec, groupName string, hasGroup bool, login string, group io.Reader) (user, error) {
	found := false
	for f := range rows(group, 4) {
		gid, err := number(f[2])
		if err != nil {
			return u, fmt.Errorf("user %q: /etc/group: %w", spec, err)
		}
		if hasGroup && (f[0] == groupName || f[2] == groupName) {
			u.gid, found = gid, true
			break
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if !hasGroup && login != "" && member == login {
				u.groups = append(u.groups, gid)
			}
		}
	}
	if hasGroup && !found {
		gid, err := number(groupName)
		if err != nil {
			return u, fmt.Errorf("user %q: no group %q in the image's /etc/group", spec, groupName)
		}
		u.gid = gid
	}
	return u, nil
}

// rows yields the lines of a colon-separated file that have n fields.
func rows(r io.Reader, n int) func(func([]string) bool) {
	return func(yield func([]string) bool) {
		sc := bufio.NewScanner(r)
		for sc.Scan() {
			if f := strings.Split(sc.Text(), ":"); len(f) == n && !yield(f) {
				return
			}
		}
	}
}

func number(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err
}

// become gives up what the user does not have, groups first.
func (u user) become() error {
	if err := unix.Setgroups(u.groups); err != nil {
		return fmt.Errorf("setgroups %v: %w", u.groups, err)
	}
	if err := unix.Setresgid(u.gid, u.gid, u.gid); err != nil {
		return fmt.Errorf("setgid %d: %w", u.gid, err)
	}
	if err := unix.Setresuid(u.uid, u.uid, u.uid); err != nil {
		return fmt.Errorf("setuid %d: %w", u.uid, err)
	}
	return nil
}
