package oss

import "testing"

// The region is that of Alibaba's own endpoints, and not known of others.
func TestRegionOf(t *testing.T) {
	for endpoint, want := range map[string]string{
		"oss-cn-hangzhou.aliyuncs.com":           "cn-hangzhou",
		"oss-cn-hangzhou-internal.aliyuncs.com":  "cn-hangzhou",
		"oss-us-west-1.aliyuncs.com:443":         "us-west-1",
		"oss-accelerate.aliyuncs.com":            "",
		"oss-accelerate-overseas.aliyuncs.com":   "",
		"oss-cn-hangzhou.aliyuncs.com.evil.test": "",
		"cn-hangzhou.oss.aliyuncs.com":           "",
		"store.example:9000":                     "",
		"127.0.0.1":                              "",
	} {
		if got := regionOf(endpoint); got != want {
			t.Errorf("%s: got %q, want %q", endpoint, got, want)
		}
	}
}
