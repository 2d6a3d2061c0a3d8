package filetree

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// samples holds the samples, each of which is made once.
var samples struct {
	dir  string // holds all of them
	made map[[2]bool]string
}

func TestMain(m *testing.M) {
	status := m.Run()
	os.RemoveAll(samples.dir)
	os.Exit(status)
}

// sample returns a directory with what file systems store in different ways: large and small directories, holes, long names,
// symbolic links, and files of all sizes. Those without links are for file systems that have none, those with few names for
// programs that take minutes for many. Tests leave it as it is.
func sample(t *testing.T, links, few bool) string {
	t.Helper()
	key := [2]bool{links, few}
	if dir := samples.made[key]; dir != "" {
		return dir
	}
	if samples.dir == "" {
		var err error
		if samples.dir, err = os.MkdirTemp("", "vhdxfs-filetree-"); err != nil {
			t.Fatal(err)
		}
		samples.made = make(map[[2]bool]string)
	}
	dir := filepath.Join(samples.dir, fmt.Sprint(len(samples.made)))
	write := func(name string, b []byte) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	many := 1500
	switch {
	case few:
		many = 100
	case testing.Short():
		many = 400
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 59, 60, 61, 100, 4095, 4096, 4097, 70_000, 3<<20 + 5} {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		write(fmt.Sprint("sizes/", n), b)
	}
	for i := range many {
		write(fmt.Sprintf("many/a file with a rather long name, number %d", i), fmt.Append(nil, i))
	}
	write("one/two/three/four/Grüße.txt", []byte("Grüße"))
	write("zeros", make([]byte, 1<<20))
	for _, n := range []int{5000, 65_536, 65_537, 500_000} { // what compresses well and badly, in turn
		var b []byte
		for len(b) < n {
			for range rng.IntN(2000) {
				b = append(b, "one two three four five six "[rng.IntN(28)])
			}
			b = append(b, bytes.Repeat(b[rng.IntN(len(b)+1):], rng.IntN(4))...)
			b = append(b, make([]byte, rng.IntN(10_000))...)
		}
		b[n-1] = '.' // mke2fs 1.47.0 loses zeros at the end where it may write inline data
		write(fmt.Sprint("text/", n), b[:n])
	}
	if links {
		for name, to := range map[string]string{"short": "zeros", "long": strings.Repeat("../", 40) + "etc/passwd", "up": "one/two/../../zeros", "away": "/one/two", "loop": "loop"} {
			if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	samples.made[key] = dir
	return dir
}

// A digest is a sink that computes a checksum.
type digest struct {
	b bytes.Buffer
	n int64
}

func (d *digest) Write(p []byte) (int, error) { d.n += int64(len(p)); return d.b.Write(p) }

func (d *digest) Zeros(n int64) error {
	_, err := d.Write(make([]byte, n))
	return err
}

// contents returns what a tree holds: by path the type, and the size and checksum of a file or the target of a link.
func contents(t *testing.T, tree Tree) map[string]string {
	t.Helper()
	w := Walker{Tree: tree}
	all := map[string]string{}
	var walk func(dir *File, path string, depth int)
	walk = func(dir *File, path string, depth int) {
		var list []*File
		if err := w.List(dir, depth, func(f *File) error { list = append(list, f); return nil }); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		for _, f := range list {
			name := filepath.Join(path, f.Name)
			if _, twice := all[name]; twice {
				t.Errorf("%s is there twice", name)
			}
			switch {
			case f.Mode.IsDir():
				all[name] = "directory"
				walk(f, name, depth+1)
			case f.Mode.IsRegular():
				var d digest
				if err := Read(tree, f, &d); err != nil || d.n != f.Size {
					t.Errorf("%s: %d of %d bytes, %v", name, d.n, f.Size, err)
				}
				all[name] = fmt.Sprintf("%d %x", d.n, sha256.Sum256(d.b.Bytes()))
			case f.Mode.Type() == fs.ModeSymlink:
				to, err := Link(tree, f)
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				all[name] = "-> " + to
			default:
				all[name] = f.Mode.String()
			}
		}
	}
	root, err := tree.Root()
	if err != nil {
		t.Fatal(err)
	}
	walk(root, "", 0)
	return all
}

// contentsOf is contents of a directory of this machine.
func contentsOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(dir, path)
		switch {
		case err != nil || name == ".":
		case d.IsDir():
			all[name] = "directory"
		case d.Type() == fs.ModeSymlink:
			to, _ := os.Readlink(path)
			all[name] = "-> " + to
		default:
			b, _ := os.ReadFile(path)
			all[name] = fmt.Sprintf("%d %x", len(b), sha256.Sum256(b))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func compare(t *testing.T, got, want map[string]string) {
	t.Helper()
	delete(got, "lost+found")
	wrong := 0
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for n := range want {
			if !yield(n) {
				return
			}
		}
	}) {
		if got[name] != want[name] && wrong < 10 {
			t.Errorf("%s: %q, want %q", name, got[name], want[name])
			wrong++
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d names, want %d", len(got), len(want))
	}
}

// run runs a program of the system, and skips the test where it is missing.
func run(t *testing.T, name string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path = "/usr/sbin/" + name
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("needs the program %s", name)
	}
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// disk makes an empty file.
func disk(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	return path
}

func openDisk(t *testing.T, path, kind string) Tree {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	tree, err := Open(f, st.Size(), kind)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// builders make a disk with the sample, by programs that others made.
var builders = map[string]struct {
	kind  string
	links bool
	few   bool
	build func(t *testing.T, dir string) string
}{
	"ext4":          {"ext4", true, false, ext("-t", "ext4")},
	"ext4 1k":       {"ext4", true, false, ext("-t", "ext4", "-b", "1024", "-O", "^64bit")},
	"ext4 inline":   {"ext4", true, false, ext("-t", "ext4", "-O", "inline_data", "-I", "512")},
	"ext4 meta_bg":  {"ext4", true, false, ext("-t", "ext4", "-O", "meta_bg,^resize_inode", "-g", "1024", "-b", "1024")},
	"ext3":          {"ext4", true, false, ext("-t", "ext3")},
	"ext2 1k":       {"ext4", true, false, ext("-t", "ext2", "-b", "1024", "-I", "128")},
	"XFS":           {"XFS", true, false, xfsDisk("-i", "size=512")},
	"XFS 1k":        {"XFS", true, false, xfsDisk("-b", "size=1024", "-n", "size=8192")},
	"XFS 4":         {"XFS", true, false, xfsDisk("-m", "crc=0")},
	"FAT16":         {"FAT", false, true, fat("-F", "16", "-s", "8")},
	"FAT32":         {"FAT", false, true, fat("-F", "32", "-s", "1")},
	"Rock Ridge":    {"ISO 9660", true, false, iso("-R")},
	"Joliet":        {"ISO 9660", false, false, iso("-J", "-joliet-long")},
	"Rock + Joliet": {"ISO 9660", true, false, iso("-R", "-J", "-joliet-long")},
	"NTFS":          {"NTFS", false, false, ntfs(false)},
	"NTFS packed":   {"NTFS", false, false, ntfs(true)},
	"exFAT":         {"exFAT", false, false, exfat()},
}

func ext(args ...string) func(*testing.T, string) string {
	return func(t *testing.T, dir string) string {
		d := disk(t, 64<<20)
		run(t, "mke2fs", append(args, "-q", "-F", "-d", dir, d)...)
		return d
	}
}

// xfsDisk has mkfs.xfs copy the directory, as its prototype file says.
func xfsDisk(args ...string) func(*testing.T, string) string {
	return func(t *testing.T, dir string) string {
		if err := exec.Command("sh", "-c", "mkfs.xfs -V").Run(); err != nil {
			t.Skip("needs the program mkfs.xfs")
		}
		links := t.TempDir()
		var b strings.Builder
		b.WriteString("/\n0 0\nd--755 0 0\n")
		var add func(path string)
		add = func(path string) {
			list, _ := os.ReadDir(path)
			for _, e := range list {
				name, at := strings.ReplaceAll(e.Name(), " ", "_"), filepath.Join(path, e.Name())
				switch {
				case e.IsDir():
					fmt.Fprintf(&b, "%s d--755 0 0\n", name)
					add(at)
					b.WriteString("$\n")
				case e.Type() == fs.ModeSymlink:
					to, _ := os.Readlink(at)
					fmt.Fprintf(&b, "%s l--777 0 0 %s\n", name, to)
				default:
					if strings.Contains(at, " ") { // which such a file cannot name
						link := filepath.Join(links, strconv.Itoa(b.Len()))
						if err := os.Symlink(at, link); err != nil {
							t.Fatal(err)
						}
						at = link
					}
					fmt.Fprintf(&b, "%s ---640 0 0 %s\n", name, at)
				}
			}
		}
		add(dir)
		b.WriteString("$\n")
		proto, d := filepath.Join(t.TempDir(), "proto"), disk(t, 320<<20)
		if err := os.WriteFile(proto, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "mkfs.xfs", append(args, "-q", "-f", "-p", proto, d)...)
		return d
	}
}

func fat(args ...string) func(*testing.T, string) string {
	return func(t *testing.T, dir string) string {
		d := disk(t, 100<<20)
		run(t, "mkfs.vfat", append(args, d)...)
		list, _ := filepath.Glob(dir + "/*")
		run(t, "mcopy", append([]string{"-i", d, "-s", "-Q"}, append(list, "::")...)...)
		return d
	}
}

func iso(args ...string) func(*testing.T, string) string {
	return func(t *testing.T, dir string) string {
		d := filepath.Join(t.TempDir(), "iso")
		run(t, "genisoimage", append(args, "-quiet", "-input-charset", "utf-8", "-o", d, dir)...)
		return d
	}
}

// needMount skips the test where a program cannot mount, or is not to with -short.
func needMount(t *testing.T, program string) {
	t.Helper()
	switch {
	case testing.Short():
		t.Skip("left out by -short, since it mounts")
	case os.Geteuid() != 0:
		t.Skipf("needs root, to mount with %s", program)
	}
}

func ntfs(packed bool) func(*testing.T, string) string {
	return func(t *testing.T, dir string) string {
		needMount(t, "ntfs-3g")
		d, at := disk(t, 100<<20), t.TempDir()
		run(t, "mkfs.ntfs", "-q", "-Q", "-F", d)
		run(t, "ntfs-3g", "-o", "compression", d, at)
		defer run(t, "umount", at)
		if packed {
			const compressed = "\x00\x08\x00\x00" // FILE_ATTRIBUTE_COMPRESSED, for what is made in there
			if err := unix.Setxattr(at, "system.ntfs_attrib", []byte(compressed), 0); err != nil {
				t.Fatal(err)
			}
		}
		run(t, "cp", "-r", dir+"/.", at)
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(at, "text", "500000"), &st); packed && (err != nil || st.Blocks*512 > st.Size/2) {
			t.Errorf("%d bytes take %d blocks of 512, so they are not compressed: %v", st.Size, st.Blocks, err)
		}
		return d
	}
}

// exfat has exfat-fuse copy the directory, which takes a device.
func exfat() func(*testing.T, string) string {
	return func(t *testing.T, dir string) string {
		needMount(t, "exfat-fuse")
		d, at := disk(t, 100<<20), t.TempDir()
		run(t, "mkfs.exfat", d)
		loop, err := exec.Command("losetup", "--find", "--show", d).Output()
		if err != nil {
			t.Skipf("needs a loop device: %v", err)
		}
		device := strings.TrimSpace(string(loop))
		defer run(t, "losetup", "-d", device)
		run(t, "mount.exfat-fuse", device, at)
		defer run(t, "umount", at)
		run(t, "cp", "-r", dir+"/.", at)
		return d
	}
}

// What a file system holds is read as those have stored it who made it.
func TestRead(t *testing.T) {
	for name, b := range builders {
		t.Run(name, func(t *testing.T) {
			dir := sample(t, b.links, b.few)
			tree := openDisk(t, b.build(t, dir), b.kind)
			want := contentsOf(t, dir)
			if b.kind == "XFS" {
				for name, v := range want {
					if strings.Contains(name, " ") {
						delete(want, name)
						want[strings.ReplaceAll(name, " ", "_")] = v
					}
				}
			}
			compare(t, contents(t, tree), want)
		})
	}
}
