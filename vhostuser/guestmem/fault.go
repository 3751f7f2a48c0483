package guestmem

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
)

// ErrFault is wrapped by the error that Catch makes of an access to a page that
// is no longer there, because the descriptor behind the region was truncated.
var ErrFault = errors.New("guest memory vanished")

// Arm makes a fault in guest memory a panic of this goroutine instead of the end
// of the process. It returns the former setting, which Catch restores:
//
//	defer guestmem.Catch(guestmem.Arm(), &err)
func Arm() (was bool) { return debug.SetPanicOnFault(true) }

// Catch is to be deferred with the result of Arm. It turns a fault into an error
// in *err that wraps ErrFault; every other panic goes on.
func Catch(was bool, err *error) {
	debug.SetPanicOnFault(was)
	r := recover()
	if r == nil {
		return
	}
	*err = FaultError(r)
	if *err == nil {
		panic(r)
	}
}

// FaultError is for callers with a recover of their own: it returns an error that
// wraps ErrFault if the recovered value r is a fault, and nil if it is not.
func FaultError(r any) error {
	// Only a fault at an address that is not Go's carries one: a nil pointer does
	// not, and code without unsafe has no other way to reach a foreign address.
	if f, ok := r.(interface {
		runtime.Error
		Addr() uintptr
	}); ok {
		return fmt.Errorf("%w: at %#x", ErrFault, f.Addr())
	}
	return nil
}
