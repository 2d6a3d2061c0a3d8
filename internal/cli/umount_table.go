package cli

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// umount(8), when root calls it for a path, asks the kernel what is mounted there, hears only that it is FUSE, and
// calls no helper of a type of FUSE. It looks closer where mount(8) has noted something of the mount in the table
// that it keeps for itself. So vhdxfs makes such a note: else umount would not wait, and not tell what uses a mount.

const (
	umountHelper = "/sbin/umount." + mounts.Type
	helperEntry  = "uhelper=" + mounts.Type
)

// tablePatience is how long the table may be locked. Any user may open its lock, and lock it for as long as he wants; then
// umount does not wait for the server of the mount.
const tablePatience = 2 * time.Second

// A mountTable is the table, in the directory that it has to itself.
type mountTable struct{ dir string }

var systemTable = mountTable{"/run/mount"}

func (t mountTable) path() string { return filepath.Join(t.dir, "utab") }

// noteForUmount has mount(8) note the mount at dir. It is asked to do all but mount, without a helper. The source is
// not the image: of that, mount(8) notes by itself what it has to. Where there is no mount(8), umount does without
// the helper.
func noteForUmount(dir string, log logrus.FieldLogger) {
	if _, err := os.Stat(umountHelper); err != nil || os.Geteuid() != 0 {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), tablePatience)
	defer stop()
	cmd := exec.CommandContext(ctx, "mount", "--internal-only", "--fake", "--types", mounts.Type, "--options", helperEntry, "--", "vhdxfs", dir)
	if cmd.Err != nil { // no mount(8) in the PATH, which may be empty
		cmd = exec.CommandContext(ctx, "/bin/mount", cmd.Args[1:]...)
	}
	if err := cmd.Run(); err != nil {
		log.WithError(err).Debug("umount will not wait for the server of this mount")
	}
}

// forgetForUmount takes away what noteForUmount has left of the mount at dir, unless there is another by now.
func forgetForUmount(dir string, log logrus.FieldLogger) {
	if m, err := mounts.At(dir); err != nil || m != nil {
		return
	}
	if err := systemTable.remove(dir); err != nil && !os.IsNotExist(err) && !os.IsPermission(err) {
		log.WithError(err).Debug("the table of mount(8) was left as it is")
	}
}

// remove removes from the table the lines of ours about dir.
func (t mountTable) remove(dir string) error {
	text, err := os.ReadFile(t.path())
	if err != nil || !strings.Contains(string(text), helperEntry) {
		return err
	}
	lock, err := os.OpenFile(t.path()+".lock", os.O_RDONLY|os.O_CREATE, 0o644) // held by flock(2) during a change
	if err != nil {
		return err
	}
	defer lock.Close()
	for end := time.Now().Add(tablePatience); ; time.Sleep(tablePatience / 100) {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) {
			return os.NewSyscallError("flock", err)
		}
	}
	if text, err = os.ReadFile(t.path()); err != nil {
		return err
	}
	target := "TARGET=" + tableEscapes.Replace(dir)
	var kept strings.Builder
	for line := range strings.Lines(string(text)) {
		if !slices.Contains(strings.Fields(line), target) || !strings.Contains(line, helperEntry) {
			kept.WriteString(line)
		}
	}
	tmp, err := os.CreateTemp(t.dir, "utab.")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // after the rename there is no such file
	_, err = tmp.WriteString(kept.String())
	if err == nil {
		err = tmp.Chmod(0o644)
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), t.path())
}

// tableEscapes are those of fstab(5).
var tableEscapes = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)
