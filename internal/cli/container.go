package cli

import (
	"os"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// inContainer reports whether this process is what a container runs, with process id 1. The container ends when it
// does, so there is no background to go to.
func inContainer() bool { return os.Getpid() == 1 }

// warnUnseen warns where a mount in a container is invisible outside of it. A mount that the host is to see has to be made
// on a shared one. In a container a directory of the host is shared only if that is asked for.
func warnUnseen(mountPoint string, log *logrus.Logger) {
	if !inContainer() {
		return
	}
	if m, err := mounts.At(mountPoint); err == nil && m != nil && !strings.Contains(m.Optional, "shared:") {
		log.Warnf("%s is visible in this container only; for the host to see it, mount it below a directory of the host "+
			"with the propagation rshared: -v DIR:DIR:rshared", mountPoint)
	}
}
