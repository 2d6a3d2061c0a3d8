package vhdx

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vhdxfs/vhdxfs/journal"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A qemuSearch looks for the sequence to replay as QEMU 7.2 does (block/vhdx-log.c). It differs from MS-VHDX 2.3.2: the
// second entry of a run may have any number, runs are compared by the number of their first entry, the tail does not
// count, and behind a run one sector is stepped over before it is known whether the search has come round.
type qemuSearch struct {
	log    []byte
	region journal.Region
	at     int64 // position, bytes
}

// entry reports whether there is a valid entry, with the number after seq if that is not 0, and steps over it.
func (q *qemuSearch) entry(seq uint64) (number uint64, valid bool) {
	length := int64(len(q.log))
	b := q.log[q.at:]
	size, number := int64(ondisk.LE.Uint32(b[8:])), ondisk.LE.Uint64(b[16:])
	if string(b[:4]) != "loge" || ondisk.GUID(b[32:]) != q.region.GUID || seq > 0 && number != seq+1 {
		q.at = (q.at + ondisk.PageSize) % length
		return 0, false
	}
	e := make([]byte, size)
	n := copy(e, b)
	copy(e[n:], q.log)
	q.at = (q.at + size) % length
	sum := ondisk.LE.Uint32(e[4:])
	return number, ondisk.Checksum(e, 4) == sum
}

// find returns the position and the number of entries of what QEMU replays.
func (q *qemuSearch) find() (start int64, entries int, err error) {
	best := uint64(0)
	for range 2 * len(q.log) / ondisk.PageSize {
		from := q.at
		first, valid := q.entry(0)
		n := 0
		for seq := uint64(0); valid; n++ {
			seq, valid = q.entry(seq)
		}
		if n > 0 && (entries == 0 || first > best) {
			start, entries, best = from, n, first
		}
		if q.at < from {
			return start, entries, nil
		}
	}
	return 0, 0, fmt.Errorf("QEMU never ends its search of the log")
}

// Whenever a mount is killed, QEMU 7.2 finds in its log what there is to replay, all of it and nothing else.
func TestQemuFindsTheLog(t *testing.T) {
	for _, logLen := range []int64{ondisk.MiB, 2 * ondisk.MiB} {
		if testing.Short() && logLen > ondisk.MiB {
			continue
		}
		t.Run(fmt.Sprint(logLen/ondisk.MiB, " MiB"), func(t *testing.T) {
			t.Parallel()
			b := build(spec{diskSize: 1400 * ondisk.MiB, logLen: logLen})
			im, err := loadWritable(Options{Writable: true}, b.memFile)
			if err != nil {
				t.Fatal(err)
			}
			im.writer.stop()
			defer im.Close()
			q := &qemuSearch{log: make([]byte, logLen)}
			for i := range int64(600) {
				// Entries of one page and of more.
				for j := range 1 + i%7/6*2 {
					if _, err := im.WriteAt([]byte{1}, (i%3*600+(i+j)%200)*ondisk.MiB%b.diskSize); err != nil {
						t.Fatal(err)
					}
					if err := im.Zero((i%3*600+(i+j)%200+1)*ondisk.MiB%b.diskSize, ondisk.MiB); err != nil {
						t.Fatal(err)
					}
				}
				if err := im.Sync(); err != nil {
					t.Fatal(err)
				}
				if testing.Short() && i%8 > 0 {
					continue
				}
				hs, err := readHeaders(b.memFile)
				if err != nil {
					t.Fatal(err)
				}
				h := hs.header()
				if !h.Dirty() {
					continue
				}
				q.region = journal.Region{Offset: int64(h.LogOffset), Length: int64(h.LogLength), GUID: h.LogGUID}
				want, err := journal.Find(b.memFile, q.region)
				if err != nil {
					t.Fatal(err)
				}
				if err := readFull(b.memFile, q.log, q.region.Offset, "log"); err != nil {
					t.Fatal(err)
				}
				q.at = 0
				start, n, err := q.find()
				if err != nil || start != want.Tail || n != want.Entries {
					t.Fatalf("after %d syncs: %d entries from %d, %v; want %d from %d", i+1, n, start, err, want.Entries, want.Tail)
				}
			}
			if n := im.writer.counters.checkpoints.Load(); n < 2 {
				t.Errorf("the log was full %d times", n)
			}
		})
	}
}

// QEMU replays the log of a mount that was killed, however often it was synced, to the same disk that we see.
func TestQemuReplaysTheLog(t *testing.T) {
	qemu, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("no qemu-img")
	}
	at := []int64{50, 126, 127, 128, 129, 150, 252, 255, 256, 400, 600}
	for _, logLen := range []int64{ondisk.MiB, 2 * ondisk.MiB} {
		if testing.Short() && logLen > ondisk.MiB {
			continue
		}
		t.Run(fmt.Sprint(logLen/ondisk.MiB, " MiB"), func(t *testing.T) {
			t.Parallel()
			b := build(spec{diskSize: 1100 * ondisk.MiB, logLen: logLen})
			im, err := loadWritable(Options{Writable: true}, b.memFile)
			if err != nil {
				t.Fatal(err)
			}
			im.writer.stop()
			defer im.Close()
			written := make(map[int64]byte) // by block, its first byte
			for i := int64(1); i <= at[len(at)-1]; i++ {
				blk, v := i*7%60+i%2*600, byte(i)|1 // on two pages of the BAT, present ones and others
				if i%3 == 0 {
					v = 0
					err = im.Zero(blk*ondisk.MiB, ondisk.MiB)
				} else {
					_, err = im.WriteAt(bytes.Repeat([]byte{v}, 512), blk*ondisk.MiB)
				}
				if err == nil {
					err = im.Sync()
				}
				if err != nil {
					t.Fatal(err)
				}
				if written[blk] = v; !slices.Contains(at, i) {
					continue
				}
				path := filepath.Join(t.TempDir(), "killed.vhdx")
				b.memFile.writeTo(t, path)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				out, err := exec.CommandContext(ctx, qemu, "check", "-q", "-r", "all", "-f", "vhdx", path).CombinedOutput()
				cancel()
				if err != nil {
					t.Fatalf("killed after %d syncs: qemu-img check: %v\n%s", i, err, out)
				}
				ro, err := Open(path, Options{})
				if err != nil {
					t.Fatal(err)
				}
				if ro.Info().Log.State != LogClean {
					t.Errorf("killed after %d syncs: QEMU has not replayed the log", i)
				}
				for blk, v := range written {
					var got [1]byte
					if _, err := ro.ReadAt(got[:], blk*ondisk.MiB); err != nil || got[0] != v {
						t.Errorf("killed after %d syncs: block %d is %d, %v; want %d", i, blk, got[0], err, v)
					}
				}
				if err := ro.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
