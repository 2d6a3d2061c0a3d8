package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// An opened image is what open --json says of one.
type opened struct {
	Directory  string
	MountPoint string `json:"mount_point"`
	Mode       string
	Volumes    []struct {
		Partition                             int
		Filesystem, Label, Device, Mode, Note string
		MountPoint                            string `json:"mount_point"`
	}
}

// openImage opens an image with the program. The test's end closes it, if nobody did.
func openImage(t *testing.T, args ...string) (o opened) {
	t.Helper()
	text := mustVhdxfs(t, append([]string{"open", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		t.Fatalf("open --json: %v\n%s", err, text)
	}
	t.Cleanup(func() {
		if at, ok := list(t, imageOf(args)); ok {
			mustVhdxfs(t, "close", at.MountPoint)
		}
	})
	return o
}

// imageOf returns the image among the arguments of open.
func imageOf(args []string) string {
	i := slices.IndexFunc(args, func(a string) bool { return strings.HasSuffix(a, ".vhdx") })
	return args[i]
}

// A part is a partition that partitioned makes.
type part struct {
	size  string // as sfdisk has it
	mkfs  string // the command for it, without the device; "" for none
	files map[string]string
}

// partitioned creates an image with a GPT of the partitions.
func partitioned(t *testing.T, size string, parts ...part) string {
	t.Helper()
	requireFUSE(t)
	requireLoop(t)
	requireTools(t, "sfdisk", "partx")
	img := filepath.Join(newDir(t), "disk.vhdx")
	mustVhdxfs(t, "create", "--size", size, "--block-size", "1M", img)
	table := "label: gpt\n"
	for _, p := range parts {
		table += "size=" + p.size + "\n"
	}
	dev := attachImage(t, img).Devices[0].Device
	must(t, "sh", "-c", fmt.Sprintf("printf '%s' | sfdisk --quiet --no-reread --no-tell-kernel %s", strings.ReplaceAll(table, "\n", `\n`), dev))
	mustVhdxfs(t, "detach", img)
	dev = attachImage(t, img).Devices[0].Device
	for i, p := range parts {
		if p.mkfs == "" {
			continue
		}
		on := fmt.Sprintf("%sp%d", dev, i+1)
		words := append(strings.Fields(p.mkfs), on)
		requireTools(t, words[0])
		must(t, words[0], words[1:]...)
		if p.files != nil {
			dir := newDir(t)
			must(t, "mount", on, dir)
			for name, content := range p.files {
				writeFile(t, filepath.Join(dir, name), []byte(content))
			}
			unmount(t, dir)
		}
	}
	mustVhdxfs(t, "detach", img)
	return img
}

// checkClosed fails the test if something of the image is still mounted or attached, or if one of the directories is there.
func checkClosed(t *testing.T, img string, directories ...string) {
	t.Helper()
	if l, ok := list(t, img); ok {
		t.Errorf("still mounted: %+v", l)
	}
	for _, m := range mounts() {
		if strings.HasPrefix(m.point, filepath.Dir(img)) || slices.ContainsFunc(directories, func(f string) bool { return strings.HasPrefix(m.point, f) }) {
			t.Errorf("%s is still mounted", m.point)
		}
	}
	for _, f := range directories {
		if _, err := os.Lstat(f); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", f, err)
		}
	}
}

// readText returns what a file holds.
func readText(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// One command leads from an image to its files, and one back; a program in the way is named, and then nothing is done.
func TestOpen(t *testing.T) {
	requireKernelFS(t, "xfs")
	img := partitioned(t, "600M",
		part{"100MiB", "mkfs.ext4 -q -L root", map[string]string{"a": "on ext4"}},
		part{"50MiB", "mkswap", nil},
		part{"350MiB", "mkfs.xfs -q -L same", map[string]string{"b": "on XFS"}},
		part{"40MiB", "mkfs.ext4 -q -L same", map[string]string{"c": "on ext4, too"}},
	)
	dir := filepath.Join(newDir(t), "files")
	o := openImage(t, img, dir)
	if o.Directory != dir || o.Mode != "rw" || len(o.Volumes) != 4 || !strings.Contains(o.Volumes[1].Note, "swap") || o.Volumes[1].MountPoint != "" {
		t.Errorf("opened: %+v", o)
	}
	for name, want := range map[string]string{"root/a": "on ext4", "p3/b": "on XFS", "p4/c": "on ext4, too"} {
		if got := readText(t, filepath.Join(dir, name)); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for _, m := range mounts() {
		if strings.HasPrefix(m.point, dir) && (!strings.Contains(m.options, "nosuid") || !strings.Contains(m.options, "nodev")) {
			t.Errorf("%s is mounted with %s", m.point, m.options)
		}
	}
	writeFile(t, filepath.Join(dir, "root/new"), []byte("written"))
	if again := openImage(t, img, dir); again.Directory != dir || again.Volumes[0].MountPoint != dir+"/root" {
		t.Errorf("opened twice: %+v", again)
	}
	if r := vhdxfs(t, "open", img, newDir(t)); r.status != 32 || !strings.Contains(r.stderr, "already mounted on "+dir) {
		t.Errorf("opened in another place: %d, %s", r.status, r.stderr)
	}

	sleep := exec.Command("sleep", "60")
	sleep.Dir = filepath.Join(dir, "p3")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	r := vhdxfs(t, "close", img)
	_, still := list(t, img)
	if want := fmt.Sprintf("%s/p3 is in use by sleep (process %d)", dir, sleep.Process.Pid); r.status != 32 || !strings.Contains(r.stderr, want) || !still {
		t.Errorf("close while it is used: %d, %s; want %q", r.status, r.stderr, want)
	}
	if got := readText(t, filepath.Join(dir, "root/a")); got != "on ext4" {
		t.Errorf("close has unmounted something: %q", got)
	}
	_ = sleep.Process.Kill()
	_ = sleep.Wait()
	mustVhdxfs(t, "close", dir)
	checkClosed(t, img, dir)
	checkClean(t, img)

	// One alone is mounted in a directory that only root can enter, by its number, label or type.
	for name, file := range map[string]string{"1": "new", "root": "a", "xfs": "b", "4": "c"} {
		o := openImage(t, "-r", "--partition", name, img)
		readText(t, filepath.Join(o.Directory, file))
		if err := os.WriteFile(filepath.Join(o.Directory, "x"), nil, 0o600); err == nil {
			t.Error("a file was written to what is open read-only")
		}
		if o.Mode != "ro" || filepath.Dir(o.Directory) != "/run/vhdxfs/disk.files" {
			t.Errorf("--partition %s: %+v", name, o)
		}
		mustVhdxfs(t, "close", o.Directory)
		checkClosed(t, img, filepath.Dir(o.Directory))
	}
	if r := vhdxfs(t, "close", img); r.status != 6 {
		t.Errorf("closed twice: %d, %s", r.status, r.stderr)
	}
}

// What cannot be opened is told in a sentence, and nothing stays attached or mounted.
func TestOpenRefuses(t *testing.T) {
	img := partitioned(t, "400M",
		part{"50MiB", "mkfs.ext4 -q -L same", nil},
		part{"50MiB", "mkfs.ext4 -q -L same", nil},
		part{"50MiB", "mkfs.ext4 -q -L damaged", nil},
		part{"20MiB", "", nil},
		part{"20MiB", "", nil},
	)
	dev := attachImage(t, img).Devices[0].Device
	must(t, "dd", "if=/dev/urandom", "of="+dev+"p3", "bs=1k", "seek=2", "count=60", "conv=notrunc", "status=none") // the group descriptors
	writeAt(t, dev+"p4", []byte("LUKS\xba\xbe\x00\x02"), 0)
	mustVhdxfs(t, "detach", img)
	dir, full := filepath.Join(newDir(t), "files"), newDir(t)
	writeFile(t, filepath.Join(full, "mine"), nil)
	empty := create(t, "64MiB")
	for _, tc := range []struct {
		name, says string
		status     int
		args       []string
	}{
		{"damaged", `cannot mount partition 3 (ext4 "damaged")`, 32, []string{img, dir}},
		{"damaged alone", `damaged`, 32, []string{"--partition", "damaged", img, dir}},
		{"two labels", `means partition 1 (ext4 "same") and partition 2 (ext4 "same"); name one by its number`, 1, []string{"--partition", "same", img, dir}},
		{"two types", "name one by its number", 1, []string{"--partition", "ext4", img, dir}},
		{"missing", "no partition \"9\"; there is partition 1", 1, []string{"--partition", "9", img, dir}},
		{"encrypted", "cryptsetup open", 32, []string{"--partition", "4", img, dir}},
		{"unknown", "no known file system", 32, []string{"--partition", "5", img, dir}},
		{"empty", "no file system that can be mounted", 32, []string{empty, dir}},
		{"full directory", "is not empty", 32, []string{"--partition", "1", img, full}},
		{"no parent directory", "no such file", 32, []string{"--partition", "1", img, dir + "/below"}},
		{"mount option", "option nonsense", 32, []string{"--partition", "1", "--mount-options", "nonsense", img, dir}},
	} {
		r := vhdxfs(t, append([]string{"open"}, tc.args...)...)
		lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
		if said := lines[len(lines)-1]; r.status != tc.status || !strings.HasPrefix(said, "vhdxfs: ") || !strings.Contains(said, tc.says) {
			t.Errorf("%s: status %d, %s; want %d and %q", tc.name, r.status, r.stderr, tc.status, tc.says)
		}
		checkClosed(t, imageOf(tc.args), dir)
	}
	// Mounted by hand, it is not mounted once more, and what was attached stays.
	l := attachImage(t, img)
	at := newDir(t)
	must(t, "mount", l.Devices[0].Device+"p1", at)
	t.Cleanup(func() { _ = exec.Command("umount", at).Run() }) // after a failure
	if r := vhdxfs(t, "open", "--partition", "1", img, dir); r.status != 32 || !strings.Contains(r.stderr, "partition 1 is already mounted on "+at) {
		t.Errorf("mounted elsewhere: %d, %s", r.status, r.stderr)
	}
	if _, ok := list(t, img); !ok {
		t.Error("open has detached what was attached before")
	}
	mustVhdxfs(t, "close", img)
	checkClosed(t, img, dir)
}

// A file system that was not unmounted opens read-only, with a note that its journal is not replayed, and no byte changes.
func TestOpenUnclean(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs"} {
		t.Run(fstype, func(t *testing.T) {
			requireFUSE(t)
			requireLoop(t)
			requireKernelFS(t, fstype)
			requireTools(t, "mkfs."+fstype)
			work := newDir(t)
			raw, dirty, img, dir := filepath.Join(work, "raw"), filepath.Join(work, "dirty"), filepath.Join(work, "disk.vhdx"), newDir(t)
			must(t, "truncate", "--size", "320M", raw)
			must(t, "mkfs."+fstype, "-q", raw)
			must(t, "mount", "-o", "loop", raw, dir)
			writeFile(t, filepath.Join(dir, "a"), []byte("kept"))
			unmount(t, dir)
			must(t, "mount", "-o", "loop", raw, dir)
			for i := range 50 { // in the log only
				writeFile(t, filepath.Join(dir, fmt.Sprint("f", i)), []byte("x"))
			}
			must(t, "sync", filepath.Join(dir, "f49"))
			must(t, "cp", "--sparse=always", raw, dirty)
			unmount(t, dir)
			mustVhdxfs(t, "convert", "-f", "raw", dirty, img)
			before := must(t, "sha256sum", img)
			o := openImage(t, "-r", img)
			if len(o.Volumes) != 1 || o.Volumes[0].Mode != "ro" || !strings.Contains(o.Volumes[0].Note, "not replayed") {
				t.Errorf("%+v", o)
			}
			if got := readText(t, filepath.Join(o.Directory, "a")); got != "kept" {
				t.Errorf("read %q", got)
			}
			mustVhdxfs(t, "close", img)
			checkClosed(t, img, o.Directory)
			if after := must(t, "sha256sum", img); after != before {
				t.Error("the image has changed")
			}
			// For writing, it is replayed.
			if o := openImage(t, img); o.Volumes[0].Note != "" || readText(t, filepath.Join(o.Directory, "f49")) != "x" {
				t.Errorf("%+v", o)
			}
		})
	}
}

// An NTFS file system is mounted by ntfs-3g where the kernel has no ntfs3.
func TestOpenNTFS(t *testing.T) {
	requireTools(t, "ntfs-3g", "mkfs.ntfs")
	img := partitioned(t, "64M", part{"50MiB", "mkfs.ntfs -q -Q -L Windows", nil})
	o := openImage(t, img)
	writeFile(t, filepath.Join(o.Directory, "a"), []byte("on NTFS"))
	if len(o.Volumes) != 1 || o.Volumes[0].Mode != "rw" || o.Volumes[0].Label != "Windows" {
		t.Errorf("%+v", o)
	}
	mustVhdxfs(t, "close", o.Directory)
	checkClosed(t, img, o.Directory)
	o = openImage(t, "-r", img)
	if got := readText(t, filepath.Join(o.Directory, "a")); got != "on NTFS" || o.Volumes[0].Mode != "ro" {
		t.Errorf("%q, %+v", got, o)
	}
	mustVhdxfs(t, "close", img)
	checkClean(t, img)
	// Damaged, it is told in words, and nothing stays.
	dev := attachImage(t, img).Devices[0].Partitions[0].Device
	must(t, "dd", "if=/dev/urandom", "of="+dev, "bs=4k", "seek=3", "count=64", "conv=notrunc", "status=none") // the MFT
	mustVhdxfs(t, "detach", img)
	if r := vhdxfs(t, "open", img); r.status != 32 || !strings.Contains(r.stderr, "damaged") {
		t.Errorf("damaged: status %d, %q", r.status, r.stderr)
	}
	checkClosed(t, img, o.Directory)
}

// Without a directory, nobody but root gets at a file system, whatever the mode of its root is.
func TestOpenedFilesArePrivate(t *testing.T) {
	img := partitioned(t, "64M", part{"", "mkfs.ext4 -q", map[string]string{"file": "content"}})
	o := openImage(t, "-r", img)
	if st, err := os.Stat(o.Directory); err != nil || st.Mode().Perm()&0o005 != 0o005 {
		t.Fatalf("%s: %v; the root of the file system is open to all", o.Directory, err)
	}
	if out, err := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", o.Directory+"/file").CombinedOutput(); err == nil {
		t.Errorf("another user reads %q", out)
	}
	if again := openImage(t, "-r", img); again.Directory != o.Directory || again.Volumes[0].MountPoint != o.Directory {
		t.Errorf("again: %+v, first %+v", again, o)
	}
	mustVhdxfs(t, "close", o.Directory)
	if names, err := filepath.Glob("/run/vhdxfs/disk*"); err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}
