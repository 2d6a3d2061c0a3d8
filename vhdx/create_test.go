package vhdx

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// createAndOpen makes an image and opens it. Check must find nothing: no warning, no leak.
func createAndOpen(t *testing.T, o CreateOptions) (*Image, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "new.vhdx")
	if err := Create(path, o); err != nil {
		t.Fatalf("Create(%+v): %v", o, err)
	}
	report, err := Check(path, Options{})
	if err != nil || !report.Clean() || report.Leaked != 0 {
		t.Fatalf("Check of a new image: %v, %+v", err, report)
	}
	im, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	return im, path
}

func TestCreateCombinations(t *testing.T) {
	for _, typ := range []DiskType{"", Dynamic, Fixed} {
		for _, logical := range []int64{0, 512, 4096} {
			for _, physical := range []int64{0, 512, 4096} {
				for _, block := range []int64{0, ondisk.MiB, 2 * ondisk.MiB, 256 * ondisk.MiB} {
					if typ == Fixed && block == 256*ondisk.MiB {
						continue // would take 256 MiB of this machine
					}
					t.Run(fmt.Sprintf("%s/%d/%d/%d", typ, logical, physical, block), func(t *testing.T) {
						t.Parallel()
						o := CreateOptions{Size: 5*ondisk.MiB + 4096, Type: typ, BlockSize: block, LogicalSectorSize: logical, PhysicalSectorSize: physical}
						im, _ := createAndOpen(t, o)
						in := im.Info()
						def := func(v, d int64) int64 {
							if v == 0 {
								return d
							}
							return v
						}
						wantType := typ
						if typ == "" {
							wantType = Dynamic
						}
						if in.Type != wantType || in.DiskSize != o.Size || in.BlockSize != def(block, DefaultBlockSize(o.Size)) ||
							in.LogicalSectorSize != def(logical, 512) || in.PhysicalSectorSize != def(physical, 4096) {
							t.Errorf("made %+v of %+v", in, o)
						}
						if in.Creator != DefaultCreator || in.Log.Length != DefaultLogSize || in.Log.State != LogClean {
							t.Errorf("creator %q, log %+v", in.Creator, in.Log)
						}
						if want := map[bool]int64{true: im.current().geo.PayloadBlocks()}[typ == Fixed]; in.Blocks.FullyPresent != want {
							t.Errorf("%d blocks are present, want %d", in.Blocks.FullyPresent, want)
						}
						buf := bytes.Repeat([]byte{0xEE}, int(im.Size()))
						if n, err := im.ReadAt(buf, 0); n != len(buf) || err != nil || !allZero(buf) {
							t.Errorf("a new disk reads as other than zeros: %d, %v", n, err)
						}
					})
				}
			}
		}
	}
}

func TestCreateSizes(t *testing.T) {
	for _, o := range []CreateOptions{
		{Size: 512},
		{Size: 4096, LogicalSectorSize: 4096},
		{Size: 512, Type: Fixed},
		{Size: 3*ondisk.MiB - 512, Type: Fixed, BlockSize: ondisk.MiB},
		{Size: 64 * ondisk.TiB},
		{Size: 64 * ondisk.TiB, BlockSize: ondisk.MiB, LogicalSectorSize: 512},
		{Size: 64 * ondisk.TiB, BlockSize: 256 * ondisk.MiB, LogicalSectorSize: 4096},
		{Size: 10 << 30, ZeroBlocks: true, BlockSize: ondisk.MiB},
		{Size: ondisk.MiB, LogSize: 64 * ondisk.MiB, Creator: "Größe 𝄞"},
	} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			t.Parallel()
			im, _ := createAndOpen(t, o)
			in := im.Info()
			if im.Size() != o.Size || o.LogSize != 0 && in.Log.Length != o.LogSize || o.Creator != "" && in.Creator != o.Creator {
				t.Errorf("made %+v of %+v", in, o)
			}
			if want := map[bool]int64{true: in.DiskSize / in.BlockSize}[o.ZeroBlocks]; in.Blocks.Zero != want {
				t.Errorf("%d blocks in state ZERO, want %d", in.Blocks.Zero, want)
			}
			if in.Headers[0].SequenceNumber == in.Headers[1].SequenceNumber || in.Headers[0].DataWriteGUID != in.Headers[1].DataWriteGUID {
				t.Errorf("headers %+v", in.Headers)
			}
		})
	}
}

// Two images have nothing in common that is meant to tell them apart.
func TestCreateMakesNewGUIDs(t *testing.T) {
	a, _ := createAndOpen(t, CreateOptions{Size: ondisk.MiB})
	b, _ := createAndOpen(t, CreateOptions{Size: ondisk.MiB})
	x, y := a.Info(), b.Info()
	if x.DiskID == y.DiskID || x.Headers[0].FileWriteGUID == y.Headers[0].FileWriteGUID || x.Headers[0].DataWriteGUID == y.Headers[0].DataWriteGUID {
		t.Errorf("two images share a GUID: %+v, %+v", x, y)
	}
}

func TestCreateRefuses(t *testing.T) {
	for name, o := range map[string]CreateOptions{
		"no size":                       {},
		"negative size":                 {Size: -512},
		"half a sector":                 {Size: 512, LogicalSectorSize: 4096},
		"a byte":                        {Size: 1},
		"64 TiB and a sector":           {Size: 64*ondisk.TiB + 512},
		"differencing":                  {Size: ondisk.MiB, Type: Differencing},
		"unknown type":                  {Size: ondisk.MiB, Type: "thick"},
		"small block":                   {Size: ondisk.MiB, BlockSize: 512 * ondisk.KiB},
		"large block":                   {Size: ondisk.MiB, BlockSize: 512 * ondisk.MiB},
		"block that is no power of two": {Size: ondisk.MiB, BlockSize: 3 * ondisk.MiB},
		"negative block":                {Size: ondisk.MiB, BlockSize: -ondisk.MiB},
		"logical sector":                {Size: ondisk.MiB, LogicalSectorSize: 1024},
		"physical sector":               {Size: ondisk.MiB, PhysicalSectorSize: 8192},
		"log of half a MiB":             {Size: ondisk.MiB, LogSize: 512 * ondisk.KiB},
		"log of 1.5 MiB":                {Size: ondisk.MiB, LogSize: 1536 * ondisk.KiB},
		"log of 4 GiB":                  {Size: ondisk.MiB, LogSize: 4 << 30},
		"negative log":                  {Size: ondisk.MiB, LogSize: -ondisk.MiB},
		"long creator":                  {Size: ondisk.MiB, Creator: strings.Repeat("x", 257)},
		"fixed disk of ZERO blocks":     {Size: ondisk.MiB, Type: Fixed, ZeroBlocks: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := Create(filepath.Join(dir, "new.vhdx"), o); err == nil {
				t.Error("no error")
			}
			if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
				t.Errorf("the directory holds %v, %v; want nothing", list, err)
			}
		})
	}
}

func TestCreateLeavesAnExistingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Create(path, CreateOptions{Size: ondisk.MiB}); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("Create over a file: %v", err)
	}
	if b, err := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file holds %q, %v now", b, err)
	}
	if err := Create(filepath.Join(path, "x", "new.vhdx"), CreateOptions{Size: ondisk.MiB}); err == nil {
		t.Error("Create below a file gave no error")
	}
}

// The limit on the size of files belongs to a process, so the test runs Create in one of its own.
const createLimited = "VHDX_TEST_CREATE_LIMITED"

func TestCreateRemovesWhatItCannotFinish(t *testing.T) {
	if path := os.Getenv(createLimited); path != "" {
		signal.Ignore(syscall.SIGXFSZ)
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 2 * ondisk.MiB, Max: 2 * ondisk.MiB}); err != nil {
			t.Skip(err)
		}
		if err := Create(path, CreateOptions{Size: 8 * ondisk.MiB, Type: Fixed}); err == nil {
			t.Error("a file above the limit was made")
		}
		return
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestCreateRemovesWhatItCannotFinish$")
	cmd.Env = append(os.Environ(), createLimited+"="+filepath.Join(dir, "new.vhdx"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
		t.Errorf("the directory holds %v, %v; want nothing", list, err)
	}
}

func TestDefaultBlockSize(t *testing.T) {
	for _, c := range []struct{ disk, block int64 }{
		{512, ondisk.MiB}, {1 << 30, ondisk.MiB}, {1<<30 + 512, 2 * ondisk.MiB}, {4 << 30, 4 * ondisk.MiB}, {32 << 30, 32 * ondisk.MiB}, {64 * ondisk.TiB, 32 * ondisk.MiB},
	} {
		if got := DefaultBlockSize(c.disk); got != c.block {
			t.Errorf("DefaultBlockSize(%d) = %d, want %d", c.disk, got, c.block)
		}
	}
}

// qemu-img finds nothing wrong with an image that it can read: it knows sectors of 512 bytes alone.
func TestCreatedImagesPassQEMU(t *testing.T) {
	needQEMU(t, "qemu-img")
	for _, o := range []CreateOptions{
		{Size: 8 * ondisk.MiB},
		{Size: 8*ondisk.MiB + 512, Type: Fixed},
		{Size: 512},
		{Size: 100 << 30, BlockSize: ondisk.MiB, ZeroBlocks: true},
		{Size: 2 * ondisk.TiB, PhysicalSectorSize: 512, LogSize: 2 * ondisk.MiB},
		{Size: 5 << 30, BlockSize: 256 * ondisk.MiB},
	} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			t.Parallel()
			_, path := createAndOpen(t, o)
			if out, err := exec.Command("qemu-img", "check", "-f", "vhdx", path).CombinedOutput(); err != nil {
				t.Errorf("qemu-img check: %v\n%s", err, out)
			}
			out, err := exec.Command("qemu-img", "info", "-f", "vhdx", path).CombinedOutput()
			if want := fmt.Sprintf("(%d bytes)", o.Size); err != nil || !strings.Contains(string(out), want) {
				t.Errorf("qemu-img info does not say %s: %v\n%s", want, err, out)
			}
		})
	}
}

// Images that QEMU made open, have no finding, and read as QEMU wrote them.
func TestImagesOfQEMU(t *testing.T) {
	needQEMU(t, "qemu-img", "qemu-io")
	for _, opts := range []string{"", "subformat=fixed", "block_size=1M", "block_state_zero=off", "block_size=256M,log_size=2M"} {
		t.Run(opts, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "qemu.vhdx")
			args := []string{"create", "-q", "-f", "vhdx", path, "20481K"}
			if opts != "" {
				args = append(args, "-o", opts)
			}
			if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
				t.Fatalf("qemu-img create: %v\n%s", err, out)
			}
			if out, err := exec.Command("qemu-io", "-f", "vhdx", "-c", "write -P 0xA5 1047552 2048", "-c", "write -P 0x5A 20971008 512", path).CombinedOutput(); err != nil {
				t.Fatalf("qemu-io: %v\n%s", err, out)
			}
			im, err := Open(path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer im.Close()
			want := make([]byte, 20481*ondisk.KiB)
			copy(want[1047552:], bytes.Repeat([]byte{0xA5}, 2048))
			copy(want[20971008:], bytes.Repeat([]byte{0x5A}, 512))
			got := make([]byte, len(want))
			if n, err := im.ReadAt(got, 0); n != len(got) || err != nil {
				t.Fatal(n, err)
			}
			if i := firstDifference(got, want); i >= 0 {
				t.Errorf("byte %d is %#x, want %#x", i, got[i], want[i])
			}
			if report, err := Check(path, Options{}); err != nil || !report.Sound() {
				t.Errorf("Check: %v, %+v", err, report)
			}
		})
	}
}
