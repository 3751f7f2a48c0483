// Package vhostuser is the back-end of the vhost-user protocol: it answers the
// messages of a virtual machine monitor (the front-end) on a unix socket and
// hands the rings that it sets up to a Device.
//
// It trusts the front-end as far as its own user does: the front-end may pass
// any descriptor and any address, and a wrong one costs it the connection. It
// trusts the guest in nothing: whatever a driver writes into a ring costs that
// request or that ring, never the connection and never the process.
//
// It knows nothing of what travels in the rings, and it never touches guest
// memory except through package guestmem.
package vhostuser
