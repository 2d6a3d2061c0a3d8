package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A workshop is a directory with all kinds of things that a tool can be given by mistake.
type workshop struct {
	dir  string
	seen map[string]string // what is there, by name
}

func newWorkshop(t *testing.T) *workshop {
	t.Helper()
	w := &workshop{dir: newDir(t), seen: map[string]string{}}
	mustVhdxfs(t, "create", "--size", "16M", w.path("empty.vhdx"))
	must(t, "cp", randomRaw(t, 16*mib, 21), w.path("raw"))
	mustVhdxfs(t, "convert", w.path("raw"), w.path("full.vhdx"))
	mustVhdxfs(t, "create", "--parent", w.path("full.vhdx"), w.path("child.vhdx"))
	writeFile(t, w.path("text"), []byte("no image"))
	writeFile(t, w.path("nothing"), nil)

	full, err := os.ReadFile(w.path("full.vhdx"))
	if err != nil {
		t.Fatal(err)
	}
	damaged := func(name string, n int, change func(b []byte)) {
		b := append([]byte(nil), full[:n]...)
		change(b)
		writeFile(t, w.path(name), b)
	}
	damaged("no-headers.vhdx", len(full), func(b []byte) { clear(b[64<<10:][:4]); clear(b[128<<10:][:4]) })
	damaged("no-regions.vhdx", len(full), func(b []byte) { clear(b[192<<10:][:4]); clear(b[256<<10:][:4]) })
	damaged("no-metadata.vhdx", len(full), func(b []byte) { clear(b[2*mib:][:8]) })
	damaged("wild.vhdx", len(full), func(b []byte) { copy(b[3*mib:], "\xff\xff\xff\xff\xff\xff\xff\xff") })
	damaged("cut.vhdx", 2*mib+100, func([]byte) {})
	// The parent of this child is another disk.
	mustVhdxfs(t, "create", "--size", "16M", w.path("other.vhdx"))
	mustVhdxfs(t, "create", "--parent", w.path("other.vhdx"), w.path("orphan.vhdx"))
	must(t, "cp", w.path("empty.vhdx"), w.path("other.vhdx"))

	for _, err := range []error{
		os.Link(w.path("full.vhdx"), w.path("hard.vhdx")), os.Symlink("full.vhdx", w.path("soft.vhdx")), os.Mkdir(w.path("directory"), 0o755),
		unix.Mkfifo(w.path("pipe"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	w.seen = w.look(t)
	sums := w.sums(t)
	t.Cleanup(func() {
		for name, sum := range w.sums(t) {
			if sums[name] != sum {
				t.Errorf("%s holds other bytes than before", name)
			}
		}
	})
	return w
}

func (w *workshop) path(name string) string { return filepath.Join(w.dir, name) }

// look returns the size and the times of everything, which no change of a file leaves as they are.
func (w *workshop) look(t *testing.T) map[string]string {
	t.Helper()
	list, err := os.ReadDir(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, e := range list {
		var st unix.Stat_t
		if err := unix.Lstat(w.path(e.Name()), &st); err != nil {
			t.Fatal(err)
		}
		seen[e.Name()] = fmt.Sprint(st.Ino, st.Mode, st.Size, st.Mtim, st.Ctim)
	}
	return seen
}

// sums returns a checksum of each regular file.
func (w *workshop) sums(t *testing.T) map[string]string {
	t.Helper()
	sums := map[string]string{}
	for name := range w.seen {
		if st, err := os.Lstat(w.path(name)); err == nil && st.Mode().IsRegular() {
			sums[name] = sha256File(t, w.path(name))
		}
	}
	return sums
}

// same fails the test unless everything is as it was.
func (w *workshop) same(t *testing.T, after string) {
	t.Helper()
	now := w.look(t)
	for name, was := range w.seen {
		if now[name] != was {
			t.Errorf("%s: %s has changed", after, name)
		}
		delete(now, name)
	}
	for name := range now {
		t.Errorf("%s: %s is left behind", after, name)
		os.RemoveAll(w.path(name))
	}
}

// refuses runs a command in the directory, which has to fail with one line that says why, and to change nothing.
func (w *workshop) refuses(t *testing.T, status int, says string, args ...string) {
	t.Helper()
	r := w.run(t, args...)
	line := strings.Join(args, " ")
	if r.status != status || !strings.Contains(r.stdout+r.stderr, says) || strings.Count(r.stderr, "\n") > 1 {
		t.Errorf("%s: status %d, %q; want %d and %q", line, r.status, r.stdout+r.stderr, status, says)
	}
	if strings.Contains(r.stderr, ".part") {
		t.Errorf("%s: %q speaks of a file that the user has not named", line, r.stderr)
	}
	w.same(t, line)
}

// run runs the program in the directory.
func (w *workshop) run(t *testing.T, args ...string) result {
	t.Helper()
	return vhdxfsIn(t, w.dir, args...)
}

const systemStatus = 2

// What a tool cannot read it says so of, in one line and with an exit status, whatever it was asked to do with it.
func TestToolsRefuseBadInput(t *testing.T) {
	t.Parallel()
	w := newWorkshop(t)
	for i, in := range []struct {
		name   string
		status int
		says   string
	}{
		{"missing", systemStatus, "no such file or directory"},
		{"directory", systemStatus, "is a directory"},
		{"pipe", systemStatus, "neither a regular file nor a block device"},
		{"/dev/null", systemStatus, "neither a regular file nor a block device"},
		{"", usageStatus, "is empty"},
		{"text", damagedStatus, "a VHDX file has at least 1 MiB"},
		{"raw", damagedStatus, "not a VHDX file"},
		{"no-headers.vhdx", damagedStatus, "neither header is valid"},
		{"no-regions.vhdx", damagedStatus, "region table"},
		{"no-metadata.vhdx", damagedStatus, "metadata"},
		{"wild.vhdx", damagedStatus, "BAT entry"},
		{"cut.vhdx", damagedStatus, "ends beyond the end of the file"},
		{"orphan.vhdx", damagedStatus, "is another disk"},
	} {
		for j, args := range [][]string{
			{"info", in.name}, {"check", in.name}, {"map", in.name}, {"map", "--draw", in.name}, {"map", "--svg", "new.svg", "--png", "new.png", in.name},
			{"diff", in.name}, {"diff", "--content", in.name}, {"flatten", in.name, "new.vhdx"}, {"flatten", "--force", in.name, "empty.vhdx"},
			{"create", "--parent", in.name, "new.vhdx"}, {"convert", "-f", "vhdx", in.name, "new.raw"},
			{"convert", "-f", "vhdx", "--force", in.name, "empty.vhdx"},
		} {
			if testing.Short() && (i+j)%12 > 0 { // one command for each input
				continue
			}
			w.refuses(t, in.status, in.says, args...)
		}
		if in.name == "raw" || in.name == "text" { // disks, for these
			continue
		}
		for j, args := range [][]string{
			{"convert", in.name, "new.raw"}, {"convert", in.name, "new.vhdx"}, {"compare", "raw", in.name}, {"compare", in.name, "raw"},
			{"diff", "raw", in.name}, {"create", "--from", in.name, "new.vhdx"},
		} {
			if testing.Short() && (i+j)%6 > 0 {
				continue
			}
			w.refuses(t, in.status, in.says, args...)
		}
	}
	w.refuses(t, usageStatus, "is empty; a disk has at least one sector", "convert", "nothing", "new.vhdx")
	w.refuses(t, usageStatus, "is empty; a disk has at least one sector", "create", "--from", "nothing", "new.vhdx")
	w.refuses(t, systemStatus, "the input is empty", "convert", "-", "new.vhdx") // the tests have no standard input
	w.refuses(t, usageStatus, `unknown format "qcow2"`, "convert", "-f", "qcow2", "raw", "new.vhdx")
	w.refuses(t, usageStatus, `unknown format "qcow2"`, "convert", "-O", "qcow2", "raw", "new")
	w.refuses(t, usageStatus, "has no parent", "diff", "full.vhdx")
}

// No tool writes over what is there, or what it reads, by whatever name; and where nothing can be made, nothing is.
func TestToolsRefuseBadOutput(t *testing.T) {
	t.Parallel()
	w := newWorkshop(t)
	for _, out := range []struct {
		name   string
		status int
		says   string
		force  string // what is said with --force; "" is the same
	}{
		{"empty.vhdx", usageStatus, "exists; use --force to replace it", "-"},
		{"directory", usageStatus, "is not a regular file", "is not a regular file"},
		{"pipe", usageStatus, "is not a regular file", "is not a regular file"},
		{"/dev/null", usageStatus, "is not a regular file", "is not a regular file"},
		{"missing/new.vhdx", systemStatus, "missing/new.vhdx: no such file or directory", ""},
		{"text/new.vhdx", systemStatus, "not a directory", ""},
		{"/proc/new.vhdx", systemStatus, "/proc/new.vhdx: no such file or directory", ""},
		{strings.Repeat("x", 256), systemStatus, "file name too long", ""},
		{"", usageStatus, "is empty", ""},
	} {
		for _, args := range [][]string{
			{"create", "--size", "1M"}, {"create", "--parent", "full.vhdx"}, {"create", "--from", "raw"}, {"convert", "full.vhdx"},
			{"convert", "-O", "vhdx", "raw"}, {"flatten", "child.vhdx"},
		} {
			w.refuses(t, out.status, out.says, append(args, out.name)...)
			if out.force == "-" {
				continue
			}
			says := out.says
			if out.force != "" {
				says = out.force
			}
			w.refuses(t, out.status, says, append(args, "--force", out.name)...)
		}
		w.refuses(t, out.status, out.says, "map", "--svg", out.name, "full.vhdx")
	}
	for _, same := range []string{"full.vhdx", "./full.vhdx", "hard.vhdx", "soft.vhdx"} {
		for _, force := range []string{"--force=false", "--force"} {
			w.refuses(t, usageStatus, "is also an input", "convert", force, "full.vhdx", same)
			w.refuses(t, usageStatus, "is also an input", "convert", force, "child.vhdx", same)
			w.refuses(t, usageStatus, "is also an input", "convert", force, "-f", "raw", "-O", "raw", "full.vhdx", same)
			w.refuses(t, usageStatus, "is also an input", "flatten", force, "child.vhdx", same)
			w.refuses(t, usageStatus, "is the parent itself, or one of its parents", "create", force, "--parent", "full.vhdx", same)
			w.refuses(t, usageStatus, "is the parent itself, or one of its parents", "create", force, "--parent", "child.vhdx", same)
			w.refuses(t, usageStatus, "is also the image, or one of its parents", "map", force, "--svg", same, "child.vhdx")
		}
		w.refuses(t, usageStatus, "is also an input", "hash", "--force", "--blocks", same, "child.vhdx")
	}
	w.refuses(t, usageStatus, "convert -O vhdx child.vhdx -", "flatten", "child.vhdx", "-")
	w.refuses(t, usageStatus, "convert -O vhdx raw -", "create", "--from", "raw", "-")
	w.refuses(t, usageStatus, "need different files", "map", "--svg", "new", "--png", "new", "full.vhdx")
	w.refuses(t, usageStatus, "--png is empty", "map", "--png", "", "full.vhdx")
	w.refuses(t, usageStatus, "--parent is empty", "create", "--parent", "", "--size", "1M", "new.vhdx")
	if dev := loopDeviceOf(t, w.path("raw")); dev != "" {
		for _, force := range []string{"--force=false", "--force"} {
			w.refuses(t, usageStatus, "use convert -O raw", "convert", force, "-O", "vhdx", "full.vhdx", dev)
			w.refuses(t, usageStatus, "use convert -O raw", "flatten", force, "child.vhdx", dev)
		}
		w.refuses(t, usageStatus, "--force overwrites everything on it", "convert", "-O", "raw", "full.vhdx", dev)
		for _, args := range replacing("raw") {
			w.refuses(t, systemStatus, dev+" is attached to it", args...)
		}
	}
	requireFUSE(t)
	point := newDir(t)
	mustVhdxfs(t, w.path("empty.vhdx"), point)
	defer unmount(t, point)
	for _, args := range replacing("empty.vhdx") {
		w.refuses(t, systemStatus, "empty.vhdx: already mounted read/write on "+point, args...)
	}
}

// replacing returns commands that would replace a file with another one.
func replacing(file string) [][]string {
	return [][]string{
		{"create", "--force", "--size", "1M", "--", file}, {"convert", "--force", "-O", "raw", "full.vhdx", file},
		{"convert", "--force", "-O", "vhdx", "full.vhdx", file}, {"convert", "--force", "-O", "vhd", "full.vhdx", file},
		{"hash", "--force", "--blocks", file, "full.vhdx"}, {"map", "--force", "--svg", file, "full.vhdx"},
		{"map", "--force", "--png", file, "full.vhdx"},
	}
}

// A size that no disk can have is refused, and the message says which ones can be.
func TestCreateRefusesSizes(t *testing.T) {
	t.Parallel()
	w := newWorkshop(t)
	for size, says := range map[string]string{
		"0": "give a positive size", "-1": "give a positive size", "-5G": "give a positive size", "1X": "give a positive size",
		"": "give a positive size", "0x100": "give a positive size", "99999999999999999999": "give a positive size", "16EiB": "give a positive size",
		"nan": "give a positive size", "inf": "give a positive size",
		"1": "must be a multiple of 512 bytes", "513": "must be a multiple of 512 bytes", "65T": "at most 64 TiB", "4P": "at most 64 TiB",
	} {
		w.refuses(t, usageStatus, says, "create", "--size", size, "new.vhdx")
	}
	w.refuses(t, usageStatus, "must be a multiple of 4096 bytes", "create", "--size", "1048577K", "--logical-sector-size", "4096", "new.vhdx")
	w.refuses(t, usageStatus, "must be at least 16 MiB", "create", "--parent", "full.vhdx", "--size", "8M", "new.vhdx")
	w.refuses(t, usageStatus, "cannot hold", "create", "--from", "raw", "--size", "8M", "new.vhdx")
	for _, bad := range [][]string{
		{"--block-size", "3M"}, {"--block-size", "512M"}, {"--block-size", "4K"}, {"--logical-sector-size", "1K"}, {"--physical-sector-size", "8K"},
		{"--log-size", "1500K"}, {"--log-size", "4G"}, {"--type", "floppy"}, {"--type", "differencing"}, {"--creator", strings.Repeat("x", 257)},
		{"--type", "fixed", "--zero-blocks"}, {"--parent-path", `D:\x.vhdx`}, {"--from", "raw", "--parent", "full.vhdx"},
	} {
		w.refuses(t, usageStatus, "", append(append([]string{"create", "--size", "16M"}, bad...), "new.vhdx")...)
	}
	w.refuses(t, usageStatus, "must be 512, as in the parent", "create", "--parent", "full.vhdx", "--logical-sector-size", "4096", "new.vhdx")
}
