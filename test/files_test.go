package test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// imageOfTree makes an image with an ext4 file system that holds what is in a directory.
func imageOfTree(t *testing.T, dir string, mkfs ...string) string {
	t.Helper()
	requireTools(t, "mke2fs")
	work := newDir(t)
	raw, img := filepath.Join(work, "raw"), filepath.Join(work, "disk.vhdx")
	must(t, "truncate", "--size", "64M", raw)
	must(t, "mke2fs", append(append([]string{"-q", "-F", "-t", "ext4"}, mkfs...), "-d", dir, raw)...)
	mustVhdxfs(t, "convert", "-f", "raw", raw, img)
	return img
}

// "Give me the files of this image": an ordinary user lists and copies them, with no mount and no root.
func TestFilesWithoutRoot(t *testing.T) {
	tree := sampleTree(t)
	must(t, "chmod", "-R", "u=rwX,g=rX,o=rX", tree)
	writeFile(t, filepath.Join(tree, "secret"), []byte("secret"))
	must(t, "chmod", "4711", filepath.Join(tree, "secret"))
	if err := os.Symlink("directory 1", filepath.Join(tree, "link")); err != nil {
		t.Fatal(err)
	}
	img := imageOfTree(t, tree)
	must(t, "chmod", "644", img)
	at := newDir(t)
	letPass(t, img)
	letPass(t, filepath.Join(at, "out"))
	must(t, "chmod", "777", at)
	user := func(args ...string) (string, error) {
		args = asNobody(append([]string{program.path(t)}, args...)...)
		return command(args[0], args[1:]...)
	}
	requireTools(t, "setpriv", "diff")
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	out, err := user("files", img, "/directory 1")
	if err != nil || !strings.Contains(out, "-rw-r--r--") || !strings.Contains(out, "file of 4097 bytes") {
		t.Errorf("files: %v\n%s", err, out)
	}
	out, err = user("files", "-R", "--json", img)
	var list []struct{ Path, Type, Link string }
	if jerr := json.Unmarshal([]byte(out), &list); err != nil || jerr != nil {
		t.Errorf("files --json: %v, %v\n%s", err, jerr, out)
	}
	if !slices.ContainsFunc(list, func(f struct{ Path, Type, Link string }) bool {
		return f == struct{ Path, Type, Link string }{"/link", "link", "directory 1"}
	}) {
		t.Errorf("the link is not in the list: %s", out)
	}
	target := filepath.Join(at, "out")
	if out, err := user("extract", img, "/", target); err != nil {
		t.Errorf("extract: %v\n%s", err, out)
	}
	_ = os.Remove(filepath.Join(target, "lost+found"))
	must(t, "diff", "-r", "--no-dereference", tree, target)
	st, err := os.Stat(filepath.Join(target, "secret"))
	if err != nil || st.Mode() != 0o711 {
		t.Errorf("the mode of a set-user-ID file is %v, %v", st.Mode(), err)
	}
	// By a path with a link, into a directory that is there.
	mustVhdxfs(t, "extract", img, "/link/file of 4097 bytes", target)
	if r := vhdxfs(t, "extract", img, "/link/file of 4097 bytes", target); r.status != 1 || !strings.Contains(r.stderr, "already exists; use --force") {
		t.Errorf("extract again: %d, %s", r.status, r.stderr)
	}
	must(t, "cmp", filepath.Join(tree, "directory 1/file of 4097 bytes"), filepath.Join(target, "file of 4097 bytes"))
}

// What is private stays so, existing files are kept unless --force is given, and after an error there is nothing.
func TestExtractIsSafe(t *testing.T) {
	t.Parallel()
	tree := newDir(t)
	must(t, "mkdir", "-p", tree+"/etc/sub")
	writeFile(t, tree+"/etc/a", []byte("new"))
	writeFile(t, tree+"/etc/sub/b", []byte("new"))
	must(t, "ln", "-s", "../../../../../../etc/passwd", tree+"/etc/out")
	must(t, "ln", "-s", "sub/../../x", tree+"/etc/trick")
	must(t, "mkfifo", tree+"/etc/fifo")
	must(t, "chmod", "-R", "a+rX", tree)
	writeFile(t, tree+"/QQQQQQ", []byte("escaped"))
	img := imageOfTree(t, tree)
	must(t, "chmod", "600", img)
	top := newDir(t)
	target := filepath.Join(top, "x/target")
	must(t, "mkdir", "-p", target)
	names := func() string {
		var all []string
		list, _ := filepath.Glob(top + "/*/*")
		more, _ := filepath.Glob(top + "/*/*/*")
		hidden, _ := filepath.Glob(target + "/.*")
		for _, p := range slices.Concat(list, more, hidden) {
			all = append(all, strings.TrimPrefix(p, top))
		}
		return strings.Join(all, " ")
	}
	r := vhdxfs(t, "extract", img, "/etc", target)
	if r.status != 3 || !strings.Contains(r.stderr, "etc/out: left out") || !strings.Contains(r.stderr, "etc/trick: left out") || !strings.Contains(r.stderr, "etc/fifo: left out") {
		t.Errorf("extract: %d, %s", r.status, r.stderr)
	}
	if st, err := os.Stat(target + "/etc/a"); err != nil || st.Mode() != 0o600 {
		t.Errorf("of a private image, a file has the mode %v, %v", st.Mode(), err)
	}

	// With --force, files are replaced and directories keep what else they hold. A link that is there is replaced, not
	// followed.
	writeFile(t, target+"/etc/a", []byte("old"))
	writeFile(t, target+"/etc/mine", []byte("mine"))
	if err := os.Remove(target + "/etc/sub/b"); err != nil {
		t.Fatal(err)
	}
	writeFile(t, top+"/x/victim", []byte("kept"))
	must(t, "ln", "-s", top+"/x/victim", target+"/etc/sub/b")
	if r := vhdxfs(t, "extract", img, "/etc", target); r.status != 1 || readText(t, target+"/etc/a") != "old" {
		t.Errorf("extract over files: %d, %s", r.status, r.stderr)
	}
	if r := vhdxfs(t, "extract", "--force", img, "/etc", target); r.status != 3 {
		t.Errorf("extract --force: %d, %s", r.status, r.stderr)
	}
	for path, want := range map[string]string{"/etc/a": "new", "/etc/mine": "mine", "/etc/sub/b": "new"} {
		if got := readText(t, target+path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if got := readText(t, top+"/x/victim"); got != "kept" {
		t.Errorf("extract has written through a symbolic link: %q", got)
	}

	// A link in the place of a directory is not followed either.
	must(t, "rm", "-r", target+"/etc")
	must(t, "ln", "-s", top+"/x", target+"/etc")
	if r := vhdxfs(t, "extract", "--force", img, "/etc", target); r.status != 1 || strings.Contains(names(), "/x/sub") {
		t.Errorf("extract into a link: %d, %s: %s", r.status, r.stderr, names())
	}
	must(t, "rm", target+"/etc")

	// A name that leads out.
	raw := filepath.Join(newDir(t), "raw")
	mustVhdxfs(t, "convert", img, raw)
	b, err := os.ReadFile(raw)
	if err != nil || bytes.Count(b, []byte("QQQQQQ")) != 1 {
		t.Fatalf("%v, %d names", err, bytes.Count(b, []byte("QQQQQQ")))
	}
	hostile := filepath.Join(newDir(t), "hostile.vhdx")
	writeAt(t, raw, []byte("../../"), int64(bytes.Index(b, []byte("QQQQQQ"))))
	mustVhdxfs(t, "convert", "-f", "raw", raw, hostile)
	before := names()
	if r := vhdxfs(t, "extract", hostile, "/", target); r.status != 3 || !strings.Contains(r.stderr, "its name cannot be used") {
		t.Errorf("extract of a name that leads out: %d, %s", r.status, r.stderr)
	}
	must(t, "sh", "-c", "rm -r "+target+"/*")
	if after := names(); after != before {
		t.Errorf("there is %s, was %s", after, before)
	}

	// After an error, what was copied before is away, and so is a directory that was made.
	fresh := filepath.Join(top, "fresh")
	if r := vhdxfs(t, "extract", img, "/etc/a", "/missing", fresh); r.status == 0 || !strings.Contains(r.stderr, "does not exist") || strings.Contains(r.stderr, "rmdir") {
		t.Errorf("extract of a missing file: %d, %s", r.status, r.stderr)
	}
	if _, err := os.Lstat(fresh); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", fresh, err)
	}
}

// The files of an image that is mounted are those that its writers have written.
func TestFilesOfMounted(t *testing.T) {
	requireFUSE(t)
	requireLoop(t)
	tree := newDir(t)
	writeFile(t, tree+"/a", []byte("first"))
	img := imageOfTree(t, tree)
	dir := newDir(t)
	openImage(t, img, dir)
	writeFile(t, dir+"/b", []byte("second"))
	must(t, "sync", "-f", dir)
	must(t, "umount", dir)
	if out := mustVhdxfs(t, "files", img); !strings.Contains(out, " b\n") {
		t.Errorf("files: %s", out)
	}
	to := newDir(t)
	mustVhdxfs(t, "extract", img, "a", "b", to)
	if readText(t, to+"/a")+readText(t, to+"/b") != "firstsecond" {
		t.Error("the files have other contents")
	}
	mustVhdxfs(t, "close", img)
}

// A disk with several file systems shows them as directories, as open does; what cannot be read is told.
func TestFilesOfPartitions(t *testing.T) {
	t.Parallel()
	requireKernelFS(t, "xfs")
	img := partitioned(t, "400M",
		part{"20MiB", "mkfs.ext4 -q -L root", map[string]string{"a": "on ext4"}},
		part{"320MiB", "mkfs.xfs -q", map[string]string{"b": "on XFS"}},
		part{"10MiB", "mkswap", nil},
	)
	if out := mustVhdxfs(t, "files", img); !strings.Contains(out, " root\n") || !strings.Contains(out, " p2\n") || strings.Contains(out, "0001-01-01") {
		t.Errorf("files: %s", out)
	}
	to := newDir(t)
	mustVhdxfs(t, "extract", img, "/root/a", "p2/b", to)
	if readText(t, to+"/a")+readText(t, to+"/b") != "on ext4on XFS" {
		t.Error("the files have other contents")
	}
	for _, tc := range []struct {
		says string
		args []string
	}{
		{"begin with one of root, p2", []string{"files", img, "/etc"}},
		{"files of partition 3 (swap) cannot be read", []string{"files", "--partition", "3", img}},
		{"no partition \"9\"", []string{"files", "--partition", "9", img}},
		{"no partition table and no file system", []string{"files", create(t, "64MiB")}},
		{"does not exist", []string{"files", img, "/root/missing"}},
		{"not a directory", []string{"files", img, "/root/a/b"}},
	} {
		if r := vhdxfs(t, tc.args...); r.status == 0 || !strings.Contains(r.stderr, tc.says) {
			t.Errorf("%q: %d, %s; want %q", tc.args, r.status, r.stderr, tc.says)
		}
	}
}

// A file system that only the kernel reads is one for open, and files says so.
func TestFilesOfWhatOnlyTheKernelReads(t *testing.T) {
	t.Parallel()
	requireTools(t, "mkfs.btrfs")
	raw, img := filepath.Join(t.TempDir(), "raw"), filepath.Join(t.TempDir(), "disk.vhdx")
	must(t, "truncate", "--size", "128M", raw)
	must(t, "mkfs.btrfs", "-q", raw)
	mustVhdxfs(t, "convert", "-f", "raw", raw, img)
	for _, args := range [][]string{{"files", img}, {"extract", img, "/", filepath.Join(t.TempDir(), "out")}, {"files", "--partition", "btrfs", img}} {
		if r := vhdxfs(t, args...); r.status == 0 || !strings.Contains(r.stderr, "vhdxfs open") || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%q: status %d, %q", args, r.status, r.stderr)
		}
	}
}

// An ordinary user mounts an image, and by a FUSE program the file system on its disk, as the documentation has it.
func TestFUSEProgramsWithoutRoot(t *testing.T) {
	requireFUSE(t)
	requireTools(t, "setpriv", "fusermount3", "mke2fs")
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	tree := newDir(t)
	writeFile(t, filepath.Join(tree, "file"), []byte("of a user"))
	must(t, "chmod", "-R", "a+rX", tree)
	for _, tc := range []struct{ program, mkfs string }{
		{"fuse2fs -o ro", `truncate --size 16M "$2" && mke2fs -q -F -t ext4 -d "$1" "$2"`},
		{"squashfuse", `mksquashfs "$1" "$2" -quiet -no-progress`},
	} {
		words, maker := strings.Fields(tc.program), strings.Fields(tc.mkfs)[0]
		t.Run(words[0], func(t *testing.T) {
			requireTools(t, words[0], maker)
			home := newDir(t)
			raw, img, point, in := home+"/raw", home+"/disk.vhdx", home+"/vhdx", home+"/in"
			must(t, "sh", "-c", tc.mkfs, "sh", tree, raw)
			mustVhdxfs(t, "convert", "-f", "raw", raw, img)
			must(t, "mkdir", point, in)
			must(t, "chown", "-R", nobody, home)
			letPass(t, point)
			letPass(t, program.path(t))
			user := func(args ...string) string {
				t.Helper()
				args = asNobody(args...)
				return must(t, args[0], args[1:]...)
			}
			user(program.path(t), "-q", "-r", img, point)
			t.Cleanup(func() {
				for _, dir := range []string{in, point} { // after a failure
					if _, mounted := mountAt(dir); mounted {
						unmount(t, dir)
					}
				}
			})
			user(append(words, point+"/disk.raw", in)...)
			if got := user("cat", in+"/file"); got != "of a user" {
				t.Errorf("it reads %q", got)
			}
			user("fusermount3", "-u", in)
			user(program.path(t), "umount", point) // which gives that program the moment that it takes to close the disk
		})
	}
}
