package disk

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

func file(t *testing.T, size int64, content map[int64]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for off, s := range content {
		if _, err := f.WriteAt([]byte(s), off); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestDetect(t *testing.T) {
	for _, tc := range []struct {
		name    string
		off     int64
		bytes   string
		want    Format
		foreign string
	}{
		{"zeros", 0, "", Raw, ""},
		{"boot sector", 510, "\x55\xAA", Raw, ""},
		{"VHDX", 0, "vhdxfile", VHDX, ""},
		{"QCOW2", 0, "QFI\xfb\x00\x00\x00\x03", Auto, "QCOW2"},
		{"VMDK", 0, "KDMV", Auto, "VMDK"},
		{"VMDK description", 0, "# Disk DescriptorFile\n", Auto, "VMDK"},
		{"dynamic VHD", 0, "conectix", VHD, ""},
		{"fixed VHD", 4096 - 512, "conectix", VHD, ""},
		{"VDI", 64, "\x7f\x10\xda\xbe", Auto, "VDI"},
	} {
		got, err := detect(file(t, 4096, map[int64]string{tc.off: tc.bytes}))
		if got != tc.want || (err == nil) != (tc.foreign == "") || err != nil && !strings.Contains(err.Error(), tc.foreign+" image") {
			t.Errorf("%s: %q, %v", tc.name, got, err)
		}
	}
	if got, err := detect(file(t, 3, nil)); got != Raw || err != nil {
		t.Errorf("three bytes: %q, %v", got, err)
	}
}

func TestRaw(t *testing.T) {
	const size = 8<<20 + 100
	path := file(t, size, map[int64]string{1 << 20: "one", 5<<20 + 7: "two"})
	d, err := Open(path, Auto, vhdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.Size() != size || d.Format != Raw || !d.Holds(path) || d.Holds(filepath.Dir(path)) {
		t.Errorf("%+v", d)
	}
	found := ""
	for off := int64(0); ; {
		run, err := d.Data(off)
		if err == io.EOF {
			break
		}
		from, to := run.From, run.To
		if err != nil || from < off || to <= from || to > size {
			t.Fatalf("Data(%d) = %d, %d, %v", off, from, to, err)
		}
		p := make([]byte, to-from)
		if _, err := d.ReadAt(p, from); err != nil {
			t.Fatal(err)
		}
		found += strings.ReplaceAll(string(p), "\x00", "")
		off = to
	}
	if found != "onetwo" {
		t.Errorf("found %q", found)
	}
	d.Limit(5 << 20)
	if run, err := d.Data(2 << 20); err != io.EOF && run.To > 5<<20 {
		t.Errorf("behind the limit: %d, %v", run.To, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, pipe, filepath.Join(dir, "missing")} {
		for _, f := range []Format{Auto, Raw, VHDX} {
			if d, err := Open(path, f, vhdx.Options{}); err == nil {
				d.Close()
				t.Errorf("%s as %q was opened", path, f)
			}
		}
	}
	path := file(t, 4096, nil)
	if _, err := Open(path, "qcow2", vhdx.Options{}); err == nil {
		t.Error("an unknown format was taken")
	}
	if _, err := Open(path, VHDX, vhdx.Options{}); !errors.Is(err, vhdx.ErrCorrupt) {
		t.Errorf("zeros as an image: %v", err)
	}
}

// What the file of an image has as holes is not read, and reads as the image does.
func TestImageHoles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.vhdx")
	if err := vhdx.Create(path, vhdx.CreateOptions{Size: 64 << 20, Type: vhdx.Fixed}); err != nil {
		t.Fatal(err)
	}
	im, err := vhdx.Open(path, vhdx.Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("data"), 100_000)
	if _, err := im.WriteAt(data, 20<<20+5); err != nil {
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := Open(path, Auto, vhdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	holes, want, got := 0, make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < d.Size(); off += 1 << 20 {
		if hole, err := d.Image.IsHole(off, 1<<20); err != nil {
			t.Fatal(err)
		} else if hole {
			holes++
		}
		for i := range got {
			got[i] = 0xEE
		}
		n, err := d.Image.ReadAt(want, off)
		m, derr := d.ReadAt(got, off)
		if n != m || err != derr || !bytes.Equal(got, want) {
			t.Errorf("at %d: %d bytes, %v; the image reads %d, %v", off, m, derr, n, err)
		}
	}
	if hole, err := d.Image.IsHole(20<<20, 1<<20); err != nil || hole {
		t.Errorf("data is a hole: %v, %v", hole, err)
	}
	if holes == 0 {
		t.Log("the file system shows no holes")
	}
	if n, err := d.ReadAt(got, d.Size()-10); n != 10 || err != io.EOF {
		t.Errorf("over the end: %d bytes, %v", n, err)
	}
}

// A raw disk that another program writes is not read.
func TestRawIsLocked(t *testing.T) {
	path := file(t, 4096, nil)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := imagefile.Of(f).Lock(imagefile.LockOn, imagefile.Exclusive); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Raw, vhdx.Options{}); !errors.Is(err, vhdx.ErrLocked) {
		t.Errorf("a locked file: %v", err)
	}
	d, err := Open(path, Raw, vhdx.Options{Lock: vhdx.LockOff})
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
}
