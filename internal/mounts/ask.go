package mounts

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/fault"
)

// ErrNoAnswer says that the program that serves a mount runs, but does not answer.
var ErrNoAnswer = errors.New("its server does not answer")

// ErrForeign says that another user has made a mount, so that nothing that it says can be believed: any program can
// serve a mount of this type.
var ErrForeign = errors.New("it belongs to another user")

// patience is how long a mount may take to answer.
const patience = 5 * time.Second

// A mount is there a moment before the socket of its server. A question to the mount itself at that moment would keep it from
// being unmounted right after, so the socket is waited for.
const (
	socketPatience = 300 * time.Millisecond
	socketPause    = 20 * time.Millisecond
)

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 4 << 20

// firstInherited is the first descriptor after standard input, output and error.
const firstInherited = 3

// A mount is asked over the socket of its server (control.go), which does not touch the mount. Where there is none, as
// for a server in a container, its attributes are read, by a process of its own: where the program behind the mount
// hangs, a process that has asked it a question cannot be ended, not even by the kernel, and neither could this program
// if one of its threads had asked.

// The hidden commands of the program.
const (
	askCommand  = "internal-ask"  // MOUNTPOINT ATTRIBUTE...
	tellCommand = "internal-tell" // MOUNTPOINT ATTRIBUTE VALUE
	loopCommand = "internal-loop" // DEVICE...
)

// An answer is what such a process writes to its standard output, and a server to its socket.
type answer struct {
	Values map[string][]byte // by name; those that the mount does not have are missing. A path need not be UTF-8
	Errno  syscall.Errno     // why there are no values, or 0
}

// answers reports whether this program runs hidden commands. One that does not would start itself for ever.
var answers atomic.Bool

var errDoesNotAnswer = errors.New("this program does not call mounts.Answer")

// Answer runs a hidden command by which a mount is asked, if args are of one, and reports whether it did. The program,
// and a test program that asks mounts, calls it before all else. What it writes to out is for this package.
func Answer(args []string, out io.Writer) (status int, ran bool) {
	answers.Store(true)
	if len(args) < 2 {
		return 0, false
	}
	var a answer
	switch {
	case args[0] == askCommand:
		a = getAttributes(args[1], args[2:])
	case args[0] == tellCommand && len(args) == 4:
		a.Errno = setAttribute(args[1], args[2], args[3])
	case args[0] == loopCommand:
		a = getBackings(args[1:])
	default:
		return 0, false
	}
	if err := json.NewEncoder(out).Encode(a); err != nil {
		return 1, true
	}
	return 0, true
}

// getAttributes reads extended attributes of the directory at mountPoint.
func getAttributes(mountPoint string, names []string) answer {
	a := answer{Values: make(map[string][]byte)}
	buf := make([]byte, MaxXAttrSize)
	for _, name := range names {
		n, err := unix.Lgetxattr(mountPoint, XAttrPrefix+name, buf)
		switch {
		case err == nil:
			a.Values[name] = bytes.Clone(buf[:n])
		case !errors.Is(err, unix.ENODATA):
			errors.As(err, &a.Errno)
			return a
		}
	}
	return a
}

// setAttribute sets an extended attribute of the mount at mountPoint.
func setAttribute(mountPoint, name, value string) (e syscall.Errno) {
	// Of the directory only root may set one, because no other user may write to it.
	errors.As(unix.Lsetxattr(mountPoint+"/"+FileName, XAttrPrefix+name, []byte(value), 0), &e)
	return e
}

// getBackings tells on which file system, as major:minor, the file of each loop device is.
func getBackings(devices []string) answer {
	a := answer{Values: make(map[string][]byte)}
	for _, path := range devices {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		if info, err := unix.IoctlLoopGetStatus64(fd); err == nil {
			a.Values[path] = fmt.Appendf(nil, "%d:%d", unix.Major(info.Device), unix.Minor(info.Device))
		}
		unix.Close(fd)
	}
	return a
}

// Backings returns on which file system, as major:minor, the file of each of the loop devices is. One of which that
// cannot be told is missing, such as one whose file is on a mount that hangs.
func Backings(devices []string) map[string]string {
	a, err := runHidden(nil, append([]string{loopCommand}, devices...)...)
	if err != nil {
		return nil
	}
	return stringsOf(a.Values)
}

func stringsOf(values map[string][]byte) map[string]string {
	m := make(map[string]string, len(values))
	for name, v := range values {
		m[name] = string(v)
	}
	return m
}

// Owner returns the user who has made a FUSE mount.
func Owner(m *mountinfo.Info) (syscall.Credential, bool) {
	var c syscall.Credential
	known := false
	for word := range strings.SplitSeq(m.VFSOptions, ",") {
		name, value, _ := strings.Cut(word, "=")
		id, err := strconv.ParseUint(value, 10, 32)
		switch {
		case err != nil:
		case name == "user_id":
			c.Uid, known = uint32(id), true
		case name == "group_id":
			c.Gid = uint32(id)
		}
	}
	return c, known
}

// Trusted reports whether what a mount says can be believed by this process: root has made it, or the same user.
func Trusted(m *mountinfo.Info) bool {
	owner, known := Owner(m)
	return known && (owner.Uid == 0 || owner.Uid == uint32(unix.Geteuid()))
}

// Attributes returns the extended attributes user.vhdx.NAME of the mount on top at mountPoint; those that it does not
// have are missing. The error matches unix.ENOTCONN where the program that served it has died, ErrNoAnswer where it
// hangs, and ErrForeign where it is not asked.
func Attributes(mountPoint string, names ...string) (map[string]string, error) {
	m, err := At(mountPoint)
	if err != nil {
		return nil, err
	}
	if m == nil || m.FSType != Type {
		return nil, &os.PathError{Op: "getxattr", Path: mountPoint, Err: unix.ENODATA}
	}
	return Ask(m, names...)
}

// Ask is Attributes of the mount m, which has to be on top at its mount point.
func Ask(m *mountinfo.Info, names ...string) (map[string]string, error) {
	if !Trusted(m) {
		return nil, ErrForeign
	}
	a, err := askServer(m, request{Names: names})
	for end := time.Now().Add(socketPatience); errors.Is(err, errNoServer) && time.Now().Before(end); {
		time.Sleep(socketPause)
		if top, terr := At(m.Mountpoint); terr != nil || top == nil || top.ID != m.ID {
			// It is gone. What is there now is not asked: that would keep it from being unmounted.
			return nil, &os.PathError{Op: "getxattr", Path: m.Mountpoint, Err: unix.ENODATA}
		}
		a, err = askServer(m, request{Names: names})
	}
	if errors.Is(err, errNoServer) {
		a, err = runHidden(nil, append([]string{askCommand, m.Mountpoint}, names...)...)
		if err == nil {
			err = pathError("getxattr", m.Mountpoint, a.Errno)
		}
	}
	if err != nil {
		return nil, err
	}
	return stringsOf(a.Values), nil
}

// pathError is the error of a question about the mount at path, and nil for no errno.
func pathError(op, path string, e syscall.Errno) error {
	switch e {
	case 0:
		return nil
	case unix.ECONNABORTED: // the program died while it was asked
		e = unix.ENOTCONN
	}
	return &os.PathError{Op: op, Path: path, Err: e}
}

// runHidden runs a hidden command of the program, as another user or as the one that this process is. It gets none of
// this process's descriptors: another user could take them from it.
func runHidden(as *syscall.Credential, args ...string) (a answer, err error) {
	if !answers.Load() {
		return a, errDoesNotAnswer
	}
	r, w, err := os.Pipe()
	if err != nil {
		return a, err
	}
	defer r.Close()
	_ = unix.CloseRange(firstInherited, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // those that this process was started with, too
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = TypeName // by that of a helper of mount(8) it would be one
	cmd.Env = []string{}
	cmd.Dir = "/" // or it would keep another file system from being unmounted, as long as it hangs
	cmd.Stdout = w
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return a, fmt.Errorf("ask the mount at %s: %w", args[1], err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer fault.Catch(new(error))
		cmd.Wait() // what it has to say is in the answer
	}()
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return a, err
	}
	text, err := io.ReadAll(io.LimitReader(r, maxAnswer))
	if errors.Is(err, os.ErrDeadlineExceeded) || len(text) == maxAnswer {
		cmd.Process.Kill() // it ends when the mount answers or is gone
		return a, ErrNoAnswer
	}
	select {
	case <-ended: // it has closed its standard output, so nothing can hold it up, unless another user stops it
	case <-time.After(patience):
		cmd.Process.Kill()
	}
	if err == nil {
		err = json.Unmarshal(text, &a)
	}
	if err != nil {
		return a, fmt.Errorf("ask the mount at %s: %w", args[1], err)
	}
	return a, nil
}

// Attribute returns one attribute, as Attributes does. For one that is not there the error is unix.ENODATA.
func Attribute(mountPoint, name string) (string, error) {
	values, err := Attributes(mountPoint, name)
	if err != nil {
		return "", err
	}
	v, ok := values[name]
	if !ok {
		return "", &os.PathError{Op: "getxattr " + XAttrPrefix + name, Path: mountPoint, Err: unix.ENODATA}
	}
	return v, nil
}

// IsDead reports whether the mount at mountPoint is one whose program has died. The error is ErrNoAnswer where
// that cannot be told.
func IsDead(mountPoint string) (bool, error) {
	_, err := Attributes(mountPoint, "pid")
	if errors.Is(err, ErrForeign) { // one that is unmounted where it only says so harms nothing
		var as *syscall.Credential
		if m, merr := At(mountPoint); merr == nil && m != nil && unix.Geteuid() == 0 {
			if owner, known := Owner(m); known {
				as = &owner
			}
		}
		var a answer
		if a, err = runHidden(as, askCommand, mountPoint, "pid"); err == nil {
			err = pathError("getxattr", mountPoint, a.Errno)
		}
	}
	if errors.Is(err, ErrNoAnswer) {
		return false, err
	}
	return errors.Is(err, unix.ENOTCONN), nil
}
