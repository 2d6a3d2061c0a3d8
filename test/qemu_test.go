package test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// qemuCreate makes an empty image with qemu-img and returns its path.
func qemuCreate(t *testing.T, size int64, options string) string {
	t.Helper()
	requireTools(t, "qemu-img", "qemu-io")
	img := filepath.Join(t.TempDir(), "qemu.vhdx")
	must(t, "qemu-img", "create", "-q", "-f", "vhdx", "-o", options, img, strconv.FormatInt(size, 10))
	return img
}

// qemuRaw returns the path of a raw file with what qemu-img reads from an image.
func qemuRaw(t *testing.T, img string) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "qemu.raw")
	must(t, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", img, raw)
	return raw
}

// qemuWrite lets qemu-io do the commands, such as "write -P 1 0 512", on an image.
func qemuWrite(t *testing.T, img string, commands ...string) {
	t.Helper()
	args := []string{"-f", "vhdx"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	if out := must(t, "qemu-io", append(args, img)...); strings.Contains(out, "failed") {
		t.Fatalf("qemu-io %s:\n%s", img, out)
	}
}

// randomWrites returns n commands that write patterns of sectors all over a disk, to its last sector too.
func randomWrites(rng *rand.Rand, size int64, n int) []string {
	const sector = 512
	sectors := size / sector
	commands := []string{fmt.Sprintf("write -P %d %d %d", 1+rng.IntN(255), (sectors-1)*sector, sector)}
	for range n {
		begin := rng.Int64N(sectors)
		length := min(1+rng.Int64N(256<<10/sector), sectors-begin)
		commands = append(commands, fmt.Sprintf("write -P %d %d %d", 1+rng.IntN(255), begin*sector, length*sector))
	}
	return commands
}

func TestQemuImagesReadTheSame(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	type image struct {
		name, options string
		size          int64
	}
	images := []image{
		{"one sector", "subformat=dynamic,block_size=1M", 512},
		{"less than a block", "subformat=dynamic,block_size=8M", 3*mib + 512},
		{"not a multiple of the block", "subformat=dynamic,block_size=2M", 33*mib + 7*512},
		{"one block to the byte", "subformat=dynamic,block_size=4M", 4 * mib},
		{"more than a chunk", "subformat=dynamic,block_size=256M", 5 << 30},
		{"no state zero", "subformat=dynamic,block_size=1M,block_state_zero=off", 20 * mib},
		{"state zero", "subformat=dynamic,block_size=1M,block_state_zero=on", 20 * mib},
		{"long log", "subformat=dynamic,block_size=1M,log_size=16M", 20 * mib},
		{"fixed", "subformat=fixed,block_size=1M", 20 * mib},
		{"fixed, not a multiple of the block", "subformat=fixed,block_size=8M", 20*mib + 512},
		{"fixed, no state zero", "subformat=fixed,block_size=2M,block_state_zero=off", 16 * mib},
	}
	for mibs := int64(1); mibs <= 256; mibs *= 2 {
		if !*long && mibs > 4 && mibs < 256 {
			continue // nothing but the size is different
		}
		images = append(images, image{fmt.Sprintf("block of %d MiB", mibs),
			fmt.Sprintf("subformat=dynamic,block_size=%dM", mibs), mibs*5/2*mib + mib/2})
	}
	for i, im := range images {
		t.Run(im.name, func(t *testing.T) {
			img := qemuCreate(t, im.size, im.options)
			qemuWrite(t, img, randomWrites(rand.New(rand.NewPCG(uint64(i), 0)), im.size, 10)...)
			raw, before := qemuRaw(t, img), sha256File(t, img)
			s := serve(t, img)
			if im.size <= wholeDigestLimit {
				sameContent(t, s.disk, raw)
			}
			got, _ := sparseDigest(t, s.disk)
			if want, _ := sparseDigest(t, raw); got != want {
				t.Errorf("sparse digest %s, want %s", got, want)
			}
			s.end(t)
			unchanged(t, img, before)
		})
	}
}

// Data that stands at the end of one chunk and the beginning of the next comes from BAT entries that have that
// of a sector bitmap block between them.
func TestQemuImageAcrossChunks(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	const chunk = 4096 * mib // of 1 MiB blocks with 512-byte sectors
	img := qemuCreate(t, 2*chunk+3*mib, "subformat=dynamic,block_size=1M")
	var commands []string
	for i, off := range []int64{0, 511 * mib, 512 * mib, chunk - mib, chunk, chunk + mib, 2*chunk - mib, 2 * chunk, 2*chunk + 2*mib} {
		commands = append(commands, fmt.Sprintf("write -P %d %d %d", i+1, off+4096, 8192))
	}
	qemuWrite(t, img, commands...)
	raw := qemuRaw(t, img)
	got, data := sparseDigest(t, serve(t, img).disk)
	if want, _ := sparseDigest(t, raw); got != want {
		t.Errorf("sparse digest %s, want %s", got, want)
	}
	// A file system that knows its holes knows those inside the blocks, too.
	if least, most := int64(len(commands))*8192, int64(len(commands))*mib; data < least || data > most {
		t.Errorf("SEEK_DATA and SEEK_HOLE tell of %d bytes of data, want %d to %d", data, least, most)
	}
}

func TestCreatedImagesPassOtherTools(t *testing.T) {
	t.Parallel()
	requireTools(t, "qemu-img", "qemu-io")
	for _, tc := range some([]struct {
		name string
		size string
		want int64 // bytes
		args []string
		// qemu-img refuses 4096-byte sectors
		foreign bool
	}{
		{"defaults", "1GiB", 1 << 30, nil, false},
		{"dynamic", "100MiB", 100 * mib, []string{"--type", "dynamic", "--block-size", "1MiB"}, false},
		{"fixed", "20MiB", 20 * mib, []string{"--type", "fixed", "--block-size", "2MiB"}, false},
		{"largest block", "300MiB", 300 * mib, []string{"--block-size", "256MiB"}, false},
		{"not a multiple of the block", "10486272", 10486272, []string{"--block-size", "1MiB"}, false},
		{"one sector", "512", 512, nil, false},
		{"long log", "64MiB", 64 * mib, []string{"--log-size", "8MiB"}, false},
		{"512-byte physical sectors", "64MiB", 64 * mib, []string{"--physical-sector-size", "512"}, false},
		{"4096-byte sectors", "64MiB", 64 * mib, []string{"--logical-sector-size", "4096"}, true},
	}) {
		t.Run(tc.name, func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "ours.vhdx")
			args := append([]string{"create", "--size", tc.size}, tc.args...)
			mustVhdxfs(t, append(args, img)...)
			if got := info(t, img).DiskSize; got != tc.want {
				t.Errorf("vhdxfs info: %d bytes, want %d", got, tc.want)
			}
			mustVhdxfs(t, "check", img)
			if !tc.foreign {
				must(t, "qemu-img", "check", "-f", "vhdx", img)
				if got := qemuSize(t, img); got != tc.want {
					t.Errorf("qemu-img info: %d bytes, want %d", got, tc.want)
				}
				qemuWrite(t, img, randomWrites(rand.New(rand.NewPCG(1, uint64(tc.want))), tc.want, 5)...)
				must(t, "qemu-img", "check", "-f", "vhdx", img)
				raw := qemuRaw(t, img)
				sameContent(t, serve(t, img).disk, raw)
			}
			requireTools(t, "vhdiinfo")
			out := must(t, "vhdiinfo", img)
			// It names a size of less than 1 KiB in bytes alone.
			if want := fmt.Sprintf("%d bytes", tc.want); !strings.Contains(out, want) {
				t.Errorf("vhdiinfo does not tell %s:\n%s", want, out)
			}
		})
	}
}

func TestCreateRefusesWhatCannotBe(t *testing.T) {
	t.Parallel()
	there := filepath.Join(t.TempDir(), "there.vhdx")
	mustVhdxfs(t, "create", "--size", "4MiB", there)
	before := sha256File(t, there)
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"no size", nil},
		{"size zero", []string{"--size", "0"}},
		{"half a sector", []string{"--size", "1000"}},
		{"more than 64 TiB", []string{"--size", "65TiB"}},
		{"block not a power of two", []string{"--size", "64MiB", "--block-size", "3MiB"}},
		{"block too small", []string{"--size", "64MiB", "--block-size", "512KiB"}},
		{"block too large", []string{"--size", "64MiB", "--block-size", "512MiB"}},
		{"sector of 1024 bytes", []string{"--size", "64MiB", "--logical-sector-size", "1024"}},
		{"log not whole MiB", []string{"--size", "64MiB", "--log-size", "1536KiB"}},
		{"unknown type", []string{"--size", "64MiB", "--type", "sparse"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "new.vhdx")
			r := vhdxfs(t, append(append([]string{"create"}, tc.args...), img)...)
			if r.status == 0 || r.stderr == "" {
				t.Errorf("exit status %d, message %q", r.status, r.stderr)
			}
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(img), "*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	if r := vhdxfs(t, "create", "--size", "4MiB", there); r.status == 0 || !strings.Contains(r.stderr, there) {
		t.Errorf("over a file that is there: exit status %d, message %q", r.status, r.stderr)
	}
	unchanged(t, there, before)
}

// qemuSize returns the size in bytes of the virtual disk by qemu-img.
func qemuSize(t *testing.T, img string) int64 {
	t.Helper()
	var i struct {
		VirtualSize int64 `json:"virtual-size"`
	}
	text := must(t, "qemu-img", "info", "--output=json", img)
	if err := json.Unmarshal([]byte(text), &i); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return i.VirtualSize
}
