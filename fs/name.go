package fs

import (
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

const (
	// nameWatch is how often it is looked whether the image still has its name.
	nameWatch = 5 * time.Second

	// namePatience is how long a question waits for that; the file system of the image may hang.
	namePatience = time.Second
)

// A nameWatcher knows what became of the name of the image that is served.
type nameWatcher struct {
	file func() (*vhdx.ImageFile, error) // nil where there is no file
	log  logrus.FieldLogger

	mu      sync.Mutex // guards what follows
	looking chan struct{}
	values  map[string]string
}

// look brings the values up to date, and returns after a while also where that is not done.
func (w *nameWatcher) look() map[string]string {
	if w.file == nil {
		return nil
	}
	w.mu.Lock()
	if w.looking == nil {
		done := make(chan struct{})
		w.looking = done
		go func() {
			defer fault.Reported(w.log)
			values := w.now()
			w.mu.Lock()
			defer w.mu.Unlock()
			w.note(values)
			w.looking = nil
			close(done)
		}()
	}
	looking := w.looking
	w.mu.Unlock()
	select {
	case <-looking:
	case <-time.After(namePatience):
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.values
}

// nameXAttrs are the names that now returns.
var nameXAttrs = []string{"image_id", "image_state", "image_path", "image_now"}

// now returns the attributes as they are at this moment.
func (w *nameWatcher) now() map[string]string {
	f, err := w.file()
	if err != nil {
		return nil
	}
	values := map[string]string{"image_id": mounts.FileID(f.Info), "image_state": mounts.FileState(f.Path, f.Info), "image_path": f.Path}
	if values["image_state"] == mounts.StateRenamed && !strings.HasSuffix(f.Now, " (deleted)") {
		values["image_now"] = f.Now
	}
	return values
}

// note keeps new values and logs what became of the name. The caller holds mu.
func (w *nameWatcher) note(values map[string]string) {
	before, path, now := w.values["image_state"], values["image_path"], values["image_now"]
	same := values["image_id"] == w.values["image_id"]
	w.values = values
	switch state := values["image_state"]; {
	case same && state == before:
	case state == mounts.StateDeleted:
		w.log.Warnf("%s was deleted while mounted; its data is lost when it is unmounted; copy disk.raw first", path)
	case state == mounts.StateRenamed && now != "":
		w.log.Warnf("%s was renamed to %s while mounted; the mount continues", path, now)
	case state == mounts.StateRenamed:
		w.log.Warnf("%s is no longer the name of the mounted image; the mount continues", path)
	case before != "":
		w.log.Infof("%s has its name again", path)
	}
}

// watch looks again and again, until end is closed.
func (w *nameWatcher) watch(end <-chan struct{}) {
	if w.file == nil {
		return
	}
	defer fault.Reported(w.log)
	t := time.NewTicker(nameWatch)
	defer t.Stop()
	for {
		w.look()
		select {
		case <-end:
			return
		case <-t.C:
		}
	}
}
