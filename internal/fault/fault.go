// Package fault turns a panic, which is a fault of the program, into an error, so that one request or one goroutine fails
// and the rest of the process goes on.
package fault

import (
	"errors"
	"fmt"
	"runtime/debug"
)

// An Error is a panic that was caught.
type Error struct {
	Value any    // what was passed to panic
	Stack []byte // of the goroutine, as text
}

func (e *Error) Error() string {
	return fmt.Sprintf("internal error, please report it: %v", e.Value)
}

// New returns the error for a value that recover has returned, and nil where there was no panic. It is called by the
// deferred function that has recovered.
func New(v any) error {
	if v == nil {
		return nil
	}
	return &Error{Value: v, Stack: debug.Stack()}
}

// Catch is to be deferred. After a panic it sets *err.
func Catch(err *error) {
	if e := New(recover()); e != nil {
		*err = e
	}
}

// Then is to be deferred. After a panic it calls do.
func Then(do func(err error)) {
	if e := New(recover()); e != nil {
		do(e)
	}
}

// Report logs a panic that was caught, with the place where it was. Of other errors it says nothing.
func Report(log interface{ Errorf(string, ...any) }, err error) {
	if f, ok := errors.AsType[*Error](err); ok {
		log.Errorf("%v\n%s", f, f.Stack)
	}
}

// Reported is to be deferred by a goroutine whose errors go nowhere. It reports a panic.
func Reported(log interface{ Errorf(string, ...any) }) {
	if e := New(recover()); e != nil {
		Report(log, e)
	}
}
