package monitor

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// neverAsked is a keeper that no word reaches.
type neverAsked struct{ Keeper }

// A monitor answers a word that it does not know with an error, and does nothing.
func TestMonitorKnowsItsWords(t *testing.T) {
	for _, w := range []word{"", "exec", "unmount /", "MOUNT"} {
		a, err := answerOf(t, connected(t), neverAsked{}, question{Word: w})
		if err != nil || !strings.Contains(string(a.Error), "unknown word") {
			t.Errorf("%q is answered with %+v, %v", w, a, err)
		}
	}
}

// connected returns both ends of a socket such as that of a monitor.
func connected(t *testing.T) (ends [2]*net.UnixConn) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, fd := range pair {
		if ends[i], err = packetConn(fd); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ends[i].Close() })
	}
	return ends
}

// answerOf returns what the engine gets for a question.
func answerOf(t *testing.T, ends [2]*net.UnixConn, k Keeper, q question) (a answer, err error) {
	t.Helper()
	reply(ends[0], k, &logCollector{}, q)
	b := make([]byte, maxMessage)
	n, err := ends[1].Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return a, json.Unmarshal(b[:n], &a)
}

// What comes with the word pass-through has to be complete, and is closed in any case.
func TestMonitorClosesDescriptors(t *testing.T) {
	ends := connected(t)
	for word, want := range map[word]string{wordPassThrough: "too few descriptors", "no word": "unknown word"} {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if a, err := answerOf(t, ends, neverAsked{}, question{Word: word, fds: []int{fd}}); err != nil || !strings.Contains(string(a.Error), want) {
			t.Errorf("%q is answered with %+v, %v", word, a, err)
		}
		if unix.Close(fd) == nil {
			t.Errorf("%q leaves a descriptor open", word)
		}
	}
}

// The errors of a monitor are those of the call: callers look for EBUSY and missing permission.
func TestMonitorErrors(t *testing.T) {
	for _, want := range []error{unix.EBUSY, unix.EPERM, unix.ENOENT} {
		var a answer
		a.setError(want)
		b, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		var got answer
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if e := got.err(); e == nil || e.Error() != want.Error() || !errors.Is(e, want) {
			t.Errorf("%v comes as %v", want, e)
		}
	}
}

// A crowded keeper knows more holders of a lock than fit into a message.
type crowded struct{ Keeper }

func (crowded) LockHolders(imagefile.FileID) (string, []int) {
	return strings.Repeat("program (process 1234567), ", 5000), make([]int, 5000)
}

// An answer that does not fit is an error, and not half an answer, which the engine would take for the end of the monitor.
func TestMonitorCutsNoAnswer(t *testing.T) {
	a, err := answerOf(t, connected(t), crowded{}, question{Word: wordHolders})
	if err != nil || !strings.Contains(string(a.Error), errTooLong.Error()) || len(a.PIDs) > 0 {
		t.Errorf("answered with %.100q, %v", a.Text, err)
	}
}

// A faulty keeper panics.
type faulty struct{ Keeper }

func (faulty) Unmount() error              { panic("oh") }
func (faulty) ControlSocket() (int, error) { panic("oh") }

// The engine gets an answer to a word that ends in a panic, and to the next one, and what is needed to find the fault.
func TestMonitorAnswersAfterAPanic(t *testing.T) {
	ends := connected(t)
	for _, w := range []word{wordUnmount, wordControl} {
		a, err := answerOf(t, ends, faulty{}, question{Word: w})
		if err != nil || !strings.Contains(string(a.Error), "report it: oh") ||
			len(a.Log) != 1 || !strings.Contains(string(a.Log[0].Text), "monitor_test.go") {
			t.Errorf("%q is answered with %+v, %v", w, a, err)
		}
	}
}
