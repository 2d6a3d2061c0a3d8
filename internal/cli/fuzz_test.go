package cli

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A fuzzImage is an image in memory, which the fuzzers damage, and its parent, if it has one.
type fuzzImage struct {
	file, parent []byte
	places       []int64 // file offsets of what is worth being damaged
	log          int64   // file offset
}

// fuzzImages returns small images: one that is clean, one that was not closed, one with a parent, and a fixed one.
var fuzzImages = sync.OnceValues(func() ([]fuzzImage, error) {
	dir, err := os.MkdirTemp("", "vhdxfs-fuzz-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := func(name string) string { return filepath.Join(dir, name) }
	var images []fuzzImage
	add := func(name string, o vhdx.CreateOptions, open bool, offsets ...int64) error {
		if err := vhdx.Create(path(name), o); err != nil {
			return err
		}
		im, err := vhdx.Open(path(name), vhdx.Options{Writable: true})
		if err != nil {
			return err
		}
		for _, off := range offsets {
			if _, err := im.WriteAt(bytes.Repeat([]byte("data"), 2048), off); err != nil {
				return err
			}
		}
		if !open {
			if err := im.Close(); err != nil {
				return err
			}
		} else if err := im.Sync(); err != nil {
			return err
		}
		b, err := os.ReadFile(path(name))
		if err != nil {
			return err
		}
		images = append(images, newFuzzImage(b))
		if open {
			return im.Close()
		}
		return nil
	}
	const mib = 1 << 20
	small := vhdx.CreateOptions{Size: 5*mib + 4096, BlockSize: mib}
	err = errors.Join(
		add("parent.vhdx", small, false, 0, 2*mib+4096),
		add("dirty.vhdx", small, true, 4096, 3*mib),
		add("child.vhdx", vhdx.CreateOptions{Parent: path("parent.vhdx")}, false, 8192, 4*mib),
		add("fixed.vhdx", vhdx.CreateOptions{Size: 2 * mib, BlockSize: mib, Type: vhdx.Fixed}, false, 0))
	if err == nil {
		images[2].parent = images[0].file
	}
	return images, err
})

func newFuzzImage(b []byte) fuzzImage {
	im := fuzzImage{file: b, places: []int64{header1, header2, table1, table1 + 64<<10}}
	im.log = int64(binary.LittleEndian.Uint64(b[header1+72:]))
	im.places = append(im.places, im.log)
	for e := b[table1+16:]; e[0] != 0; e = e[32:] { // regions: the BAT and the metadata
		off := int64(binary.LittleEndian.Uint64(e[16:]))
		im.places = append(im.places, off, off+64<<10) // the items of the metadata
	}
	return im
}

// damaged returns a copy of the file, changed by the instructions in b, with checksums that are right again. An instruction
// is a place (1 byte), an offset there (2), a count (1), and so many bytes. A place that there is not cuts the file.
func (im *fuzzImage) damaged(b []byte) []byte {
	file := bytes.Clone(im.file)
	for len(b) >= 4 {
		place, off, n := int(b[0])%(len(im.places)+1), int64(binary.LittleEndian.Uint16(b[1:])), min(int(b[3]), len(b)-4)
		if place == len(im.places) {
			file = file[:min(int64(len(file)), off<<12)]
		} else if at := im.places[place] + off; at < int64(len(file)) {
			copy(file[at:], b[4:4+n])
		}
		b = b[4+n:]
	}
	stamp := func(off, n int64) {
		if off+n <= int64(len(file)) {
			s := file[off : off+n]
			binary.LittleEndian.PutUint32(s[4:], ondisk.Checksum(s, 4))
		}
	}
	stamp(header1, 4096)
	stamp(header2, 4096)
	stamp(table1, 64<<10)
	stamp(table1+64<<10, 64<<10)
	for off := im.log; off < im.log+64<<10 && off+4096 <= int64(len(file)); off += 4096 {
		if n := int64(binary.LittleEndian.Uint32(file[off+8:])); string(file[off:off+4]) == "loge" && n >= 64 {
			stamp(off, min(n, 1<<20))
		}
	}
	return file
}

// write writes the damaged image to dir, and the parent beside it.
func (im *fuzzImage) write(t *testing.T, dir string, b []byte) (path string, file []byte) {
	t.Helper()
	path, file = filepath.Join(dir, "image.vhdx"), im.damaged(b)
	if err := writeSparse(path, file); err != nil {
		t.Fatal(err)
	}
	if im.parent != nil {
		if err := writeSparse(filepath.Join(dir, "parent.vhdx"), im.parent); err != nil {
			t.Fatal(err)
		}
	}
	return path, file
}

func writeSparse(path string, b []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(int64(len(b))); err != nil {
		return err
	}
	zero := make([]byte, 4096)
	for at := 0; at < len(b); at += len(zero) {
		if p := b[at:min(len(b), at+len(zero))]; !bytes.Equal(p, zero[:len(p)]) {
			if _, err := f.WriteAt(p, int64(at)); err != nil {
				return err
			}
		}
	}
	return nil
}

// addSeeds adds a few damages of each image, with each of so many operations.
func addSeeds(f *testing.F, operations int) []fuzzImage {
	images, err := fuzzImages()
	if err != nil {
		f.Fatal(err)
	}
	far := []byte{7, 0, 0, 8, 6, 0, 0, 0, 0, 0, 0, 0x80} // a place in one of the regions
	for i := range images {
		for op := range operations {
			f.Add(uint8(i), uint8(op), []byte{})
		}
		far[0] = uint8(5 + i%2*2)
		f.Add(uint8(i), uint8(i*3), bytes.Clone(far))
		f.Add(uint8(i), uint8(i*3+1), []byte{4, 56, 0, 8, 0, 0, 0, 0, 0, 0, 1, 0})     // the log wants 256 TiB
		f.Add(uint8(i), uint8(i*3+2), []byte{9, 0xFF, 0x02, 0})                        // cut
		f.Add(uint8(i), uint8(i*3+3), []byte{8, 8, 0, 8, 0, 0, 0, 0, 0, 0x40, 0, 0})   // 64 TiB
		f.Add(uint8(i), uint8(i*3+4), []byte{0, 66, 0, 1, 9, 2, 16, 0, 4, 1, 2, 3, 4}) // another log, and no region
	}
	return images
}

// fuzzCommands are whole command lines. Those that change the image come last.
var fuzzCommands = [][]string{
	{"info", "--json", "IMAGE"}, {"info", "-v", "IMAGE"}, {"check", "--json", "IMAGE"}, {"map", "--json", "IMAGE"}, {"map", "--draw", "IMAGE"},
	{"chain", "--json", "IMAGE"}, {"convert", "--json", "--skip-errors", "IMAGE", "OUTPUT"}, {"convert", "--without-parent", "IMAGE", "OUTPUT"},
	{"flatten", "IMAGE", "OUTPUT"}, {"compare", "IMAGE", "IMAGE"}, {"diff", "--json", "IMAGE"}, {"create", "--parent", "IMAGE", "OUTPUT"},
	{"check", "--repair", "--dry-run", "--json", "IMAGE"}, {"compact", "--dry-run", "IMAGE"},
	{"check", "--repair", "--json", "IMAGE"}, {"compact", "--json", "IMAGE"}, {"resize", "--json", "IMAGE", "+3M"}, {"resize", "IMAGE", "2M"}, {"merge", "--json", "IMAGE"},
	{"snapshot", "IMAGE", "OUTPUT"},
}

const firstThatChanges = 14

// FuzzCommands runs commands over damaged images. None ends by a fault of the program or does not end, one that only
// reads changes nothing, JSON is JSON, and an image that was changed with success is sound.
func FuzzCommands(f *testing.F) {
	images := addSeeds(f, len(fuzzCommands))
	f.Fuzz(func(t *testing.T, image, command uint8, b []byte) {
		dir := t.TempDir()
		im := images[int(image)%len(images)]
		path, before := im.write(t, dir, b)
		output := filepath.Join(dir, "output.vhdx")
		n := int(command) % len(fuzzCommands)
		args := append([]string{"vhdxfs"}, fuzzCommands[n]...)
		for i, a := range args {
			switch a {
			case "IMAGE":
				args[i] = path
			case "OUTPUT":
				args[i] = output
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var stdout, stderr bytes.Buffer
		status := Run(ctx, args, &stdout, &stderr)
		if status == statusFault || ctx.Err() != nil {
			t.Fatalf("vhdxfs %q: status %d\n%s", args[1:], status, stderr.String())
		}
		if status != statusOK && stderr.Len() == 0 && stdout.Len() == 0 {
			t.Errorf("vhdxfs %q: status %d without a word", args[1:], status)
		}
		if slices.Contains(args, "--json") && status != statusUsage {
			for _, text := range []string{stdout.String(), stderr.String()} {
				if text != "" && strings.HasPrefix(text, "{") && !json.Valid([]byte(text)) {
					t.Errorf("vhdxfs %q: no JSON: %s", args[1:], text)
				}
			}
		}
		if n < firstThatChanges {
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, before) {
				t.Errorf("vhdxfs %q changed the image, %v", args[1:], err)
			}
			return
		}
		if status != statusOK {
			return
		}
		if _, err := os.Stat(path); err != nil { // it was merged
			path = filepath.Join(dir, "parent.vhdx")
		}
		if status := Run(ctx, []string{"vhdxfs", "check", path}, io.Discard, &stderr); status != statusOK && status != statusWarnings {
			t.Errorf("vhdxfs %q leaves an image that check finds to be damaged, %d", args[1:], status)
		}
	})
}

// FuzzOverlay opens files as the overlay of an image, and uses what can be opened. The image never changes.
func FuzzOverlay(f *testing.F) {
	images := addSeeds(f, 2)
	f.Fuzz(func(t *testing.T, image, op uint8, b []byte) {
		dir := t.TempDir()
		im := images[int(image)%len(images)]
		im.parent = images[0].file
		path, _ := im.write(t, dir, b)
		j := &mountJob{Options: &mountoption.Options{Replay: []string{mountoption.ReplayAuto, mountoption.ReplayNo}[op%2]}}
		j.Mount.Image, j.Mount.Overlay = filepath.Join(dir, "parent.vhdx"), path
		disk, err := openOverlay(j, vhdx.Options{Discard: vhdx.DiscardPunch})
		if err == nil {
			for off := int64(0); off < min(disk.Size(), 8<<20) && err == nil; off += 1<<20 - 512 {
				n := min(8192, disk.Size()-off)
				_, readErr := disk.ReadAt(make([]byte, n), off)
				_, writeErr := disk.WriteAt(bytes.Repeat([]byte{1}, int(n)), off)
				err = errors.Join(readErr, writeErr)
			}
			err = errors.Join(err, disk.Discard(0, min(disk.Size(), 2<<20)), disk.Sync(), disk.Close())
		}
		if f, ok := errors.AsType[*fault.Error](err); ok {
			t.Fatalf("%v\n%s", f, f.Stack)
		}
		if now, err := os.ReadFile(j.Mount.Image); err != nil || !bytes.Equal(now, im.parent) {
			t.Errorf("the image was changed, %v", err)
		}
	})
}
