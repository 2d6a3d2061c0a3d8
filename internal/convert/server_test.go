package convert

import (
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/newfile"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// A server that copies by itself is asked for everything. One that cannot is asked once, and after an error the rest is read and
// written. The kernel of this host plays the server.
func TestServerCopies(t *testing.T) {
	in, path := rawDisk(t, 4096)
	for name, tc := range map[string]struct {
		alone   bool // the server copies by itself
		failsAt int  // in which call; 0 in none
		reflink Reflink
		calls   int // at the least 1, or as many as the pieces need if this is -1
	}{
		"copies":        {true, 0, ReflinkAuto, -1},
		"cannot":        {false, 0, ReflinkAuto, 1},
		"fails at once": {true, 1, ReflinkAuto, 1},
		"fails later":   {true, 2, ReflinkAuto, 2},
		"is not asked":  {true, 0, ReflinkNever, 0},
	} {
		for to, newTarget := range map[string]func(path string, size int64) (Target, error){
			"raw":     func(path string, size int64) (Target, error) { return NewRaw(path, size, newfile.Options{}) },
			"dynamic": imageTarget(vhdx.CreateOptions{BlockSize: mib}),
		} {
			t.Run(fmt.Sprintf("%s/%s", name, to), func(t *testing.T) {
				defer func() { copiesByServer, copyByServer = imagefile.CopiesByServer, imagefile.CopyByServer }()
				copiesByServer = func(imagefile.File, imagefile.File) bool { return true }
				calls, bytes := 0, int64(0)
				copyByServer = func(dst imagefile.File, off int64, src imagefile.File, srcOff, n int64) (bool, error) {
					calls++
					if calls == tc.failsAt {
						return false, unix.EIO
					}
					bytes += n
					_, err := imagefile.CopyByServer(dst, off, src, srcOff, n)
					return tc.alone, err
				}
				d := open(t, path)
				out := filepath.Join(t.TempDir(), "out")
				target, err := newTarget(out, int64(len(in)))
				if err != nil {
					t.Fatal(err)
				}
				if to := target.Shares(ReflinkAuto); imagefile.CanClone(to, to) == nil {
					t.Skip("the file system shares space")
				}
				var total, done atomic.Int64
				r, err := Run(t.Context(), Input{Disk: d}, target, Options{
					Workers: 3, Verify: true, Reflink: tc.reflink,
					Phase:    func(_ string, n int64) { total.Add(max(0, n)) },
					Progress: func(n int64) { done.Add(n) },
				})
				if err != nil {
					t.Fatal(err)
				}
				reads(t, out, in)
				if r.Shared != 0 || !r.Verified || r.Data < 2*mib {
					t.Errorf("%+v", r)
				}
				if total.Load() != done.Load() {
					t.Errorf("%d bytes were announced, %d done", total.Load(), done.Load())
				}
				if tc.calls >= 0 && calls != tc.calls || tc.calls < 0 && bytes < 2*mib {
					t.Errorf("the server was asked %d times, for %d bytes", calls, bytes)
				}
			})
		}
	}
}
