package partition

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const mib = 1 << 20

// raw makes a raw disk and runs a command on it, whose last argument is its path. Input goes to standard input.
func raw(t *testing.T, size int64, input string, args ...string) *os.File {
	t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		t.Skipf("needs %s", args[0])
	}
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(args[0], append(args[1:], path)...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return f
}

// A file system that others made reaches as far as they say.
func TestFileSystems(t *testing.T) {
	const size = 400 * mib
	for _, tc := range []struct {
		what string
		mkfs []string
		end  int64 // at least; with slack of 1 MiB, in which a file system may round
	}{
		{"ext4", []string{"mkfs.ext4", "-q"}, size},
		{"ext4", []string{"mkfs.ext4", "-q", "-b", "1024", "-O", "^64bit"}, size},
		{"XFS", []string{"mkfs.xfs", "-q"}, size},
		{"Btrfs", []string{"mkfs.btrfs", "-q"}, size},
		{"NTFS", []string{"mkfs.ntfs", "-F", "-q", "-Q"}, size},
		{"exFAT", []string{"mkfs.exfat"}, size},
		{"FAT", []string{"mkfs.vfat"}, size},
		{"swap", []string{"mkswap"}, size},
		{"F2FS", []string{"mkfs.f2fs", "-q"}, size},
	} {
		t.Run(strings.Join(tc.mkfs, " "), func(t *testing.T) {
			l, err := Find(raw(t, size, "", tc.mkfs...), size, 512)
			if err != nil {
				t.Fatal(err)
			}
			if len(l.Uses) != 1 || !strings.Contains(l.Uses[0].What, tc.what) || l.Uses[0].End > tc.end || l.Uses[0].End < tc.end-mib {
				t.Errorf("found %+v; want %s up to %d", l.Uses, tc.what, tc.end)
			}
			if _, beyond := l.Beyond(size); beyond {
				t.Error("it reaches beyond the disk")
			}
			if _, beyond := l.Beyond(size - 2*mib); !beyond {
				t.Error("it does not reach beyond a smaller disk")
			}
		})
	}
}

// What tells no size needs all of the disk; what tells one needs that. Only their first bytes are here, since they are
// made by programs for Windows, or for devices.
func TestSignatures(t *testing.T) {
	const size = 4 * mib
	head := func(put func(b []byte)) []byte {
		b := make([]byte, size)
		put(b)
		return b
	}
	for _, tc := range []struct {
		what string
		b    []byte
		end  int64
	}{
		{"BitLocker", head(func(b []byte) { copy(b[3:], "-FVE-FS-") }), size},
		{"LUKS", head(func(b []byte) { copy(b, "LUKS\xba\xbe") }), size},
		{"md", head(func(b []byte) { le.PutUint32(b, 0xA92B4EFC) }), size},
		{"md", head(func(b []byte) { le.PutUint32(b[4096:], 0xA92B4EFC) }), size},
		{"ReFS", head(func(b []byte) {
			copy(b[3:], "ReFS")
			le.PutUint64(b[24:], 1000)
			le.PutUint32(b[32:], 4096)
		}), 4096000},
		{"ReFS", head(func(b []byte) {
			copy(b[3:], "ReFS")
			le.PutUint64(b[24:], math.MaxUint64)
			le.PutUint32(b[32:], math.MaxUint32)
		}), math.MaxInt64},
	} {
		l, err := Find(bytes.NewReader(tc.b), size, 512)
		if err != nil || len(l.Uses) != 1 || !strings.Contains(l.Uses[0].What, tc.what) || l.Uses[0].End != tc.end {
			t.Errorf("%+v, %v; want %s up to %d", l, err, tc.what, tc.end)
		}
	}
}

func TestNothingKnown(t *testing.T) {
	for name, b := range map[string][]byte{
		"zeros": make([]byte, mib), "text": bytes.Repeat([]byte("nothing known "), mib/14), "ones": bytes.Repeat([]byte{0xFF}, mib), "little": {1, 2, 3},
	} {
		if l, err := Find(bytes.NewReader(b), int64(len(b)), 512); err != nil || len(l.Uses) != 0 || l.GPT != nil {
			t.Errorf("%s: %+v, %v; want nothing", name, l, err)
		}
	}
	if _, err := Find(failing{}, mib, 512); err == nil {
		t.Error("no error from a disk that cannot be read")
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errors.New("broken") }

func TestMBR(t *testing.T) {
	f := raw(t, 300*mib, "label: dos\nsize=100MiB\nsize=150MiB, type=5\n", "sfdisk", "-q")
	l, err := Find(f, 300*mib, 512)
	if err != nil {
		t.Fatal(err)
	}
	if u, _ := l.Beyond(0); u.What != "partition 2" || u.End != 251*mib || len(l.Uses) != 2 {
		t.Errorf("%+v; want two partitions, the second up to 251 MiB", l.Uses)
	}
}

// partitions is a table for sfdisk, which takes the sectors of a file to be of 512 bytes.
const partitions = "label: gpt\nsize=100MiB\nsize=50MiB\n"

// sfdisk finds no fault in a GPT whose backup was moved, and the partitions are what they were: on a larger disk, a
// smaller one, and one that has just enough room.
func TestMoveBackup(t *testing.T) {
	const used = 151 * mib
	for _, size := range []int64{300 * mib, 1000 * mib, used + 33*512} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			f := raw(t, 200*mib, partitions, "sfdisk", "-q")
			l, err := Find(f, 200*mib, 512)
			if err != nil {
				t.Fatal(err)
			}
			if u, _ := l.Beyond(0); u.What != "partition 2" || u.End != used || l.GPT == nil || !l.GPT.BackupAtEnd(200*mib) {
				t.Fatalf("%+v; want two partitions, the second up to 151 MiB, and a GPT", l.Uses)
			}
			before := dump(t, f)
			if size > 200*mib {
				if err := f.Truncate(size); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.GPT.MoveBackup(f, size); err != nil {
				t.Fatal(err)
			}
			if err := f.Truncate(size); err != nil {
				t.Fatal(err)
			}
			if !l.GPT.BackupAtEnd(size) {
				t.Error("the backup is not at the end")
			}
			if out, err := exec.Command("sfdisk", "--verify", f.Name()).CombinedOutput(); err != nil || !strings.Contains(string(out), "No errors detected") {
				t.Errorf("sfdisk: %v\n%s", err, out)
			}
			if after := dump(t, f); after != before {
				t.Errorf("the partitions were\n%s\nand are\n%s", before, after)
			}
		})
	}
}

// dump returns the partitions as sfdisk sees them.
func dump(t *testing.T, f *os.File) string {
	t.Helper()
	out, err := exec.Command("sfdisk", "--dump", f.Name()).Output()
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(out), "\n\n")
	return list
}

func TestNoRoomForTheBackup(t *testing.T) {
	f := raw(t, 200*mib, partitions, "sfdisk", "-q")
	l, err := Find(f, 200*mib, 512)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{151*mib + 32*512, 100 * mib, 512, 0} {
		if err := l.GPT.MoveBackup(f, size); err == nil {
			t.Errorf("no error for a disk of %d bytes", size)
		}
	}
	if after, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the disk was changed: %v", err)
	}
	empty := raw(t, 200*mib, "label: gpt\n", "sfdisk", "-q")
	if l, err = Find(empty, 200*mib, 512); err != nil || l.GPT == nil || l.GPT.Fits(mib) == nil || l.GPT.Fits(2*mib) != nil {
		t.Errorf("a GPT without partitions fits where it should not, or the other way round: %v", err)
	}
}

func TestDamagedGPT(t *testing.T) {
	const size = 200 * mib
	for name, damage := range map[string]func(b []byte){
		"header":        func(b []byte) { b[512+60]++ },
		"no header":     func(b []byte) { clear(b[512:1024]) },
		"header length": func(b []byte) { le.PutUint32(b[512+12:], 1<<31) },
		"entries":       func(b []byte) { b[1024+56]++ },
		"many entries":  func(b []byte) { le.PutUint32(b[512+80:], 1<<31); stamp(b) },
		"no entries":    func(b []byte) { le.PutUint32(b[512+84:], 0); stamp(b) },
		"far away":      func(b []byte) { le.PutUint64(b[512+72:], 1<<62); stamp(b) },
	} {
		t.Run(name, func(t *testing.T) {
			f := raw(t, size, partitions, "sfdisk", "-q")
			b := make([]byte, 4096)
			if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
				t.Fatal(err)
			}
			damage(b)
			if _, err := f.WriteAt(b, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := Find(f, size, 512); !errors.Is(err, ErrDamagedGPT) {
				t.Errorf("%v, want %v", err, ErrDamagedGPT)
			}
		})
	}
}

// stamp gives the header in b a good checksum.
func stamp(b []byte) {
	g := GPT{sector: 512, header: b[512:1024]}
	le.PutUint32(g.header[16:], g.headerSum())
}
