package mounts

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vhdxfs/internal/fault"
)

// ErrNoAnswer says that the program that serves a mount runs, but does not answer.
var ErrNoAnswer = errors.New("the program that serves it does not answer")

// patience is how long a mount may take to answer.
const patience = 5 * time.Second

// A mount is asked by a process of its own. Where the program behind the mount hangs, who has asked it a question
// cannot be ended, not even by the kernel, and neither could this program if one of its threads had asked.

// askCommand is the hidden command of the program that asks: NAME MOUNTPOINT ATTRIBUTE...
const askCommand = "internal-ask"

// An answer is what such a process writes to its standard output.
type answer struct {
	Values map[string][]byte // by name; those that the mount does not have are missing. A path need not be UTF-8
	Errno  syscall.Errno     // why there are no values, or 0
}

// Answer runs the hidden command by which a mount is asked, if args are its arguments, and reports whether it did. The
// program, and a test program that asks mounts, calls it before all else. What it writes to out is for Attributes.
func Answer(args []string, out io.Writer) (status int, ran bool) {
	if len(args) < 2 || args[0] != askCommand {
		return 0, false
	}
	if err := json.NewEncoder(out).Encode(getAttributes(args[1], args[2:])); err != nil {
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

// Attributes returns the extended attributes user.vhdx.NAME of the directory at mountPoint; those that it does not
// have are missing. The error matches unix.ENOTCONN where the program that served it has died, and ErrNoAnswer where
// it hangs.
func Attributes(mountPoint string, names ...string) (map[string]string, error) {
	values, err := ask(nil, mountPoint, names)
	if errors.Is(err, unix.EACCES) && unix.Geteuid() == 0 {
		// An ordinary user's mount is closed to root, but not to that user.
		if owner := ownerOf(mountPoint); owner != nil {
			return ask(owner, mountPoint, names)
		}
	}
	return values, err
}

// ownerOf returns who has made the FUSE mount at mountPoint, and nil where that is not known.
func ownerOf(mountPoint string) *syscall.Credential {
	m, err := At(mountPoint)
	if err != nil || m == nil {
		return nil
	}
	var c syscall.Credential
	for word := range strings.SplitSeq(m.VFSOptions, ",") {
		name, value, _ := strings.Cut(word, "=")
		id, err := strconv.ParseUint(value, 10, 32)
		switch {
		case err != nil:
		case name == "user_id":
			c.Uid = uint32(id)
		case name == "group_id":
			c.Gid = uint32(id)
		}
	}
	if c.Uid == 0 {
		return nil
	}
	return &c
}

// ask is Attributes as another user, or as who this process is.
func ask(as *syscall.Credential, mountPoint string, names []string) (map[string]string, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", append([]string{askCommand, mountPoint}, names...)...)
	cmd.Args[0] = TypeName // by that of a helper of mount(8) it would be one
	cmd.Env = []string{}
	cmd.Dir = "/" // or it would keep another file system from being unmounted, as long as it hangs
	cmd.Stdout = w
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, fmt.Errorf("ask the mount at %s: %w", mountPoint, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer fault.Catch(new(error))
		cmd.Wait() // what it has to say is in the answer
	}()
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(r)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		cmd.Process.Kill() // it ends when the mount answers or is gone
		return nil, ErrNoAnswer
	}
	<-ended // it has closed its standard output, so nothing can hold it up
	var a answer
	if err == nil {
		err = json.Unmarshal(text, &a)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("ask the mount at %s: %w", mountPoint, err)
	case a.Errno == unix.ECONNABORTED: // the program died while it was asked
		a.Errno = unix.ENOTCONN
		fallthrough
	case a.Errno != 0:
		return nil, &os.PathError{Op: "getxattr", Path: mountPoint, Err: a.Errno}
	}
	values := make(map[string]string, len(a.Values))
	for name, v := range a.Values {
		values[name] = string(v)
	}
	return values, nil
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
	if errors.Is(err, ErrNoAnswer) {
		return false, err
	}
	return errors.Is(err, unix.ENOTCONN), nil
}
