package tree

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
)

func TestACL(t *testing.T) {
	for _, tc := range []struct {
		text   string
		access bool
		want   string // tag:perm:id, empty for no xattr
		ok     bool
	}{
		{"user::rwx,group::r-x,other::r--", true, "", true},
		{"user::rwx,group::r-x,other::---", false, "1:7:ffffffff 4:5:ffffffff 20:0:ffffffff ", true},
		{"user::rw-,user:7:r--,group::r--,mask::rw-,other::r--", true, "1:6:ffffffff 2:4:7 4:4:ffffffff 10:6:ffffffff 20:4:ffffffff ", true},
		{"user::rw-,user:lp:r--:7,user:daemon:rw-:1,group::r--,group:3:--x,mask::rw-,other::r--", true,
			"1:6:ffffffff 2:6:1 2:4:7 4:4:ffffffff 8:1:3 10:6:ffffffff 20:4:ffffffff ", true},
		{"user::rwx\nuser:0:rwx\t#effective:r-x\ngroup::r-x\nmask:r-x\nother:r--\n", true,
			"1:7:ffffffff 2:7:0 4:5:ffffffff 10:5:ffffffff 20:4:ffffffff ", true},
		{"u::rwx,g::r-x,o::r--,m::r--", false, "1:7:ffffffff 4:5:ffffffff 10:4:ffffffff 20:4:ffffffff ", true},
		{"", true, "", true},
		{"user::rw-,user:somebody:r--,group::r--,mask::r--,other::r--", true, "", false},
		{"user::rw-,user:1:r--,user:1:rw-,group::r--,mask::r--,other::r--", true, "", false},
		{"user::rw-,user:4294967295:r--,group::r--,mask::r--,other::r--", true, "", false},
		{"user::rq-,group::r--,other::r--", true, "", false},
		{"mask:5:r--", true, "", false},
		{"nobody::r--", true, "", false},
		{"user", true, "", false},
	} {
		value, ok := parseACL(tc.text, tc.access)
		got := ""
		for i := 4; i+8 <= len(value); i += 8 {
			le := func(at, n int) (v uint32) {
				for k := range n {
					v |= uint32(value[i+at+k]) << (8 * k)
				}
				return v
			}
			got += fmt.Sprintf("%x:%x:%x ", le(0, 2), le(2, 2), le(4, 4))
		}
		if ok != tc.ok || got != tc.want || value != "" && value[:4] != "\x02\x00\x00\x00" {
			t.Errorf("%q: got %q, %t, want %q, %t", tc.text, got, ok, tc.want, tc.ok)
		}
	}
}

func TestACLInATar(t *testing.T) {
	data := setPAX(t, pack(t, file("x", "")), map[string]string{
		"SCHILY.acl.access":                     "user::rw-,user:7:r--,group::r--,mask::r--,other::r--",
		"SCHILY.acl.default":                    "user::rw-,user:who:r--,group::r--,mask::r--,other::r--",
		"SCHILY.xattr.system.posix_acl_default": "as it is",
		"SCHILY.xattr.user.a":                   "b",
	})
	tr, err := merge(&memory{}, Limits{}, data)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	access, _ := parseACL("user::rw-,user:7:r--,group::r--,mask::r--,other::r--", true)
	want := []Xattr{{"system.posix_acl_access", access}, {"system.posix_acl_default", "as it is"}, {"user.a", "b"}}
	if diff := cmp.Diff(want, lookup(t, tr, "x").Xattrs); diff != "" {
		t.Errorf("xattrs (-want +got):\n%s", diff)
	}
}

// What GNU tar reads from Linux comes back as Linux has it. It writes numbers of
// users who have no names only.
func TestACLAsLinuxHasIt(t *testing.T) {
	tools := testenv.NeedsTool(t, "tar", "setfacl")
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "d", "f"), nil, 0o640); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"-m", "u:70000:rwx,g:70005:r,u:70003:-,m:rx", "d"}, {"-d", "-m", "u:70001:rw,o::-", "d"}, {"-m", "g:70002:w", "d/f"},
	} {
		cmd := exec.Command(tools[1], args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("setfacl %q: %v: %s", args, err, out)
		}
	}
	data, err := exec.Command(tools[0], "--acls", "--numeric-owner", "--format=pax", "-C", dir, "-cf", "-", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	tr, err := merge(&memory{}, Limits{}, data)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	for name, xattrs := range map[string][]string{
		"d": {"system.posix_acl_access", "system.posix_acl_default"}, "d/f": {"system.posix_acl_access"},
	} {
		var want []Xattr
		for _, x := range xattrs {
			buf := make([]byte, 1000)
			n, err := unix.Lgetxattr(filepath.Join(dir, name), x, buf)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, Xattr{x, string(buf[:n])})
		}
		if diff := cmp.Diff(want, lookup(t, tr, name).Xattrs); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
