package main

import (
	"reflect"
	"strings"
	"testing"
)

func TestResolveUser(t *testing.T) {
	const passwd = `root:x:0:0:root:/root:/bin/sh
web:x:33:34:,,,:/var/www:/usr/sbin/nologin
short:line
`
	const group = `root:x:0:
www:x:34:
logs:x:40:web,root
disk:x:6:web
`
	for _, tc := range []struct {
		spec string
		want user
		err  string
	}{
		{"", user{0, 0, []int{40}, "/root"}, ""},
		{"root", user{0, 0, []int{40}, "/root"}, ""},
		{"web", user{33, 34, []int{40, 6}, "/var/www"}, ""},
		{"33", user{33, 34, []int{40, 6}, "/var/www"}, ""},
		{"web:disk", user{33, 6, nil, "/var/www"}, ""},
		{"web:1234", user{33, 1234, nil, "/var/www"}, ""},
		{"1000", user{1000, 0, nil, "/"}, ""},
		{"1000:1001", user{1000, 1001, nil, "/"}, ""},
		{"nobody", user{}, `"nobody"`},
		{"web:nogroup", user{}, `"nogroup"`},
		{"-1", user{}, `"-1"`},
		{"4294967296", user{}, `"4294967296"`},
	} {
		t.Run(tc.spec, func(t *testing.T) {
			got, err := resolveUser(tc.spec, strings.NewReader(passwd), strings.NewReader(group))
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("got error %v, want one with %s", err, tc.err)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, %v, want %+v", got, err, tc.want)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	got := environment([]string{"A=b=c", "HOME=/x", "EMPTY=", "A=last", "nothing"}, user{home: "/root"})
	want := map[string]string{
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"A":    "last", "HOME": "/x", "EMPTY": "",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
