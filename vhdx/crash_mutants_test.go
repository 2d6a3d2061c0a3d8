package vhdx

import (
	"runtime"
	"strings"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A mutant is a writer with an error: it leaves out a barrier, or does something too early.
type mutant struct {
	dropSync string          // the method in which syncs do nothing
	step     func(w *writer) // done before each step of the workload
}

// A mutantFile is a file whose syncs do nothing when they are called, directly or not, by a certain method.
type mutantFile struct {
	File
	dropSync string
}

func (f mutantFile) Sync() error {
	if f.dropSync != "" && calledBy(f.dropSync) {
		return nil
	}
	return f.File.Sync()
}

// calledBy reports whether a function whose name ends so is among the callers.
func calledBy(name string) bool {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, name) {
			return true
		}
		if !more {
			return false
		}
	}
}

// mutants are the errors that the crash test has to find, each with the kind of disk that shows it.
var mutants = map[string]struct {
	disk string
	mutant
	seed uint64 // the first to be tried: one that is known to find it soon
}{
	"no sync between the two headers":              {"dynamic", mutant{dropSync: "(*headerState).write"}, 0},
	"no sync of the first entry of a log":          {"dynamic", mutant{dropSync: "journal.Start"}, 0},
	"no sync of payload in recycled space":         {"recycled", mutant{dropSync: "(*committer).syncPayload"}, 5},
	"no sync of payload that hides a parent":       {"differencing", mutant{dropSync: "(*committer).syncPayload"}, 0},
	"no sync of the log":                           {"dynamic", mutant{dropSync: "(*committer).syncLog"}, 0},
	"no sync of pages before the log is clean":     {"dynamic", mutant{dropSync: "(*committer).syncPlaces"}, 0},
	"no sync of overwritten payload":               {"fixed", mutant{dropSync: "(*committer).round"}, 0},
	"space given away before it is unmapped":       {"dynamic", mutant{step: giveAwayEarly}, 1},
	"pages in their places before they are logged": {"differencing", mutant{step: placeEarly}, 1},
	"the log begins anew before pages are placed":  {"full log", mutant{step: forgetLogged}, 0},
	"no sync of the copy of a block":               {"compacted", mutant{dropSync: "(*committer).syncPayload"}, 0},
	"no sync of the log that says where it moved":  {"compacted", mutant{dropSync: "(*committer).syncLog"}, 0},
	"a size is claimed before it is durable":       {"growing", mutant{step: claimSizeEarly}, 3},
}

// giveAwayEarly makes space available whose unmapping nothing durable knows of.
func giveAwayEarly(w *writer) {
	w.dirty.mu.Lock()
	defer w.dirty.mu.Unlock()
	for _, p := range w.dirty.unmapped {
		w.space.release(p)
	}
	w.dirty.unmapped = nil
}

// placeEarly writes dirty pages to their places without a log entry.
func placeEarly(w *writer) {
	w.dirty.mu.Lock()
	defer w.dirty.mu.Unlock()
	for off, d := range w.dirty.cached {
		var b [ondisk.PageSize]byte
		d.p.Encode(&b)
		w.file.WriteAt(b[:], off)
	}
}

// claimSizeEarly makes log entries name a size of the file that was not synced.
func claimSizeEarly(w *writer) {
	if w.committer.session != nil {
		w.committer.session.flushed = w.space.fileSize()
	}
}

// forgetLogged has pages that are in the log never come to their places.
func forgetLogged(w *writer) {
	if w.committer.session != nil {
		clear(w.committer.session.logged)
	}
}

// The crash test is proven by what it finds: each error that is put into the writer on purpose.
func TestPowerCutFindsMutants(t *testing.T) {
	notShort(t, "it needs a power cut at every operation")
	const seeds = 40
	specs := crashSpecs()
	for name, m := range mutants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for i := range uint64(seeds) {
				seed := m.seed + i
				ct, first, step := (*crashTest)(nil), 1, 1
				switch m.disk {
				case "full log":
					ct, first = newFullLogTest(seed)
					step = 7
				case "compacted":
					ct = newCompactTest("dynamic", seed)
				default:
					ct = newCrashTest(specs[m.disk](), seed)
				}
				ct.mutant, ct.host = m.mutant, crashHosts[i%2]
				if err := ct.runFrom(first, step); err != nil {
					t.Logf("found with seed %d after %d states: %v", seed, ct.states, err)
					return
				}
			}
			t.Errorf("not found with %d seeds", seeds)
		})
	}
}
