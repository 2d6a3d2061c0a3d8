package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

// Rules say what a process can still do. Paths that do not exist are left out.
type Rules struct {
	Read  []string // files, and directories with all that is in them, that can be read
	Write []string // those in which files can also be written, made, renamed and removed; devices can be controlled
	Make  []string // directories in which directories and symbolic links can be made as well
	Empty []string // directories in which empty directories can be removed, and no more than that

	Capabilities Capabilities // that are kept, of those that there are

	// Socket is the descriptor of the connected socket by which messages with descriptors can be sent, -1 for none. It must be one
	// of SOCK_SEQPACKET, and can be shut down, but not closed.
	Socket int
}

// Capabilities is a set of capabilities, a bit for each.
type Capabilities uint64

// CapabilitySet returns the set of some capabilities, such as unix.CAP_CHOWN.
func CapabilitySet(list ...int) Capabilities {
	var s Capabilities
	for _, c := range list {
		s |= 1 << c
	}
	return s
}

// A State says how far a process is confined.
type State struct {
	Landlock     int  // the ABI of the kernel's Landlock that is in force; 0 is none
	Seccomp      bool // system calls are filtered
	Capabilities bool // no more than those of the rules are left
	Missing      []string
}

// Complete reports whether all is in force that this package knows. A kernel whose Landlock is older than
// fullLandlock leaves something out.
func (s *State) Complete() bool { return len(s.Missing) == 0 }

// String describes the state in a few words.
func (s *State) String() string {
	var has []string
	if s.Landlock > 0 {
		has = append(has, fmt.Sprintf("landlock %d", s.Landlock))
	}
	if s.Seccomp {
		has = append(has, "seccomp")
	}
	if s.Capabilities {
		has = append(has, "capabilities")
	}
	text := "on"
	switch {
	case len(has) == 0:
		text = "off"
	case !s.Complete():
		text = "partly"
	}
	if len(has) > 0 {
		text += ": " + strings.Join(has, ", ")
	}
	if !s.Complete() {
		text += "; missing: " + strings.Join(s.Missing, ", ")
	}
	return text
}

// fullLandlock is the ABI from which on Landlock knows all that is relied on: files, their truncation, TCP, devices,
// and signals to other processes (Linux 6.12).
const fullLandlock = 6

// Confine takes from this process all rights but those of the rules. What the system does not know is left out, and
// named by the state.
func Confine(r Rules) *State {
	s := new(State)
	miss := func(what string, err error) {
		s.Missing = append(s.Missing, fmt.Sprintf("%s (%v)", what, err))
	}
	if err := ll.AllThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		miss("no_new_privs", err) // and without it, the others
		return s
	}
	abi, err := confineFiles(r)
	switch {
	case err != nil:
		miss("landlock", err)
	case abi < fullLandlock:
		miss("a newer landlock", fmt.Errorf("the kernel has ABI %d, all is in %d", abi, fullLandlock))
	}
	s.Landlock = abi
	if err := limitCapabilities(r.Capabilities, psx.Syscall3); err != nil {
		miss("capabilities", err)
	} else {
		s.Capabilities = true
	}
	if err := filterCalls(len(r.Make) > 0, r.Socket); err != nil {
		miss("seccomp", err)
	} else {
		s.Seccomp = true
	}
	return s
}

// What Landlock lets be done with files, and with directories and all that is below them. None of them can be executed.
const (
	readFile  landlock.AccessFSSet = ll.AccessFSReadFile
	writeFile landlock.AccessFSSet = readFile | ll.AccessFSWriteFile | ll.AccessFSTruncate
	readDir   landlock.AccessFSSet = readFile | ll.AccessFSReadDir
	writeDir  landlock.AccessFSSet = readDir | writeFile | ll.AccessFSMakeReg | ll.AccessFSRemoveFile | ll.AccessFSRefer
	makeDir   landlock.AccessFSSet = writeDir | ll.AccessFSMakeDir | ll.AccessFSMakeSym | ll.AccessFSRemoveDir
)

// confineFiles puts Landlock in force and returns its ABI.
func confineFiles(r Rules) (abi int, err error) {
	abi, err = ll.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return 0, errors.New("the kernel has none")
	}
	var rules []landlock.Rule
	for _, p := range r.Read {
		rules = appendRule(rules, p, readFile, readDir)
	}
	refer := landlock.AccessFSSet(ll.AccessFSRefer)
	if abi < 2 {
		refer = 0 // nothing can be moved to another directory
	}
	for _, p := range r.Write {
		rules = appendRule(rules, p, writeFile, writeDir&^ll.AccessFSRefer|refer)
	}
	for _, p := range r.Empty {
		rules = appendRule(rules, p, 0, ll.AccessFSRemoveDir)
	}
	for _, p := range r.Make {
		rules = appendRule(rules, p, writeFile, makeDir&^ll.AccessFSRefer|refer)
	}
	fd, flags, err := landlock.V11.BestEffort().NewRulesetFD(rules...)
	if err != nil {
		return 0, err
	}
	if fd < 0 {
		return 0, errors.New("the kernel has none")
	}
	defer unix.Close(fd)
	return abi, ll.AllThreadsLandlockRestrictSelf(fd, flags)
}

// appendRule appends the rule for a path, whether that is a file or a directory.
func appendRule(rules []landlock.Rule, path string, file, directory landlock.AccessFSSet) []landlock.Rule {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return rules
	case st.IsDir():
		return append(rules, landlock.PathAccess(directory, path))
	case st.Mode()&os.ModeDevice != 0 && file&ll.AccessFSWriteFile != 0:
		return append(rules, landlock.PathAccess(file, path).WithIoctlDev())
	}
	return append(rules, landlock.PathAccess(file, path))
}

// DropCapabilities takes all capabilities from a process that is confined already. A build with cgo cannot do that any
// more, and the error matches errors.ErrUnsupported.
func DropCapabilities() error {
	return limitCapabilities(0, func(call, a1, a2, a3 uintptr) (uintptr, uintptr, syscall.Errno) {
		return syscall.AllThreadsSyscall(call, a1, a2, a3)
	})
}

// limitCapabilities takes all capabilities from this process that are not in keep. call makes a system call in all
// threads.
func limitCapabilities(keep Capabilities, call func(call, a1, a2, a3 uintptr) (uintptr, uintptr, syscall.Errno)) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	for i := range data {
		data[i].Permitted &= uint32(keep >> (32 * i))
		data[i].Effective = data[i].Permitted
		data[i].Inheritable = 0 // and with it the ambient ones
	}
	_, _, errno := call(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	runtime.KeepAlive(&header)
	runtime.KeepAlive(&data)
	if errno != 0 {
		return os.NewSyscallError("capset", errno)
	}
	return nil
}
