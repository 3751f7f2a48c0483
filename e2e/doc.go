// Package e2e tests the whole system from outside: the built rafsd binary, a real
// hypervisor, a real guest kernel, a real registry. What the guest reads is hashed
// and compared with what the image was made from.
//
// The package itself is empty; its tests import nothing of rafsd. RAFSD_BIN names a
// binary to test instead of one built from this tree, KEEP=1 keeps the folders of
// machines.
package e2e
