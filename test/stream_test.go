package test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pipeline runs a line of bash, in which $vhdxfs is the program and $1 and so on the arguments. It returns what it wrote to
// standard error, and whether each of its commands succeeded.
func pipeline(t *testing.T, line string, args ...string) (stderr string, ok bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", append([]string{"-c", "set -o pipefail; " + line, "bash"}, args...)...)
	cmd.Env = append(os.Environ(), "vhdxfs="+program.path(t))
	var out bytes.Buffer
	cmd.Stderr = &out
	cmd.Stdin = nil
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	checkLog(t, out.String())
	return out.String(), err == nil
}

// missing fails the test if one of the files is there.
func missing(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s was left", path)
		}
	}
}

// A disk goes over a pipe to another machine, as a raw disk and as an image, and is the same disk there. An image arrives in
// one pass, and with its sectors, block size and type.
func TestMoveADiskOverAPipe(t *testing.T) {
	t.Parallel()
	notShort(t, "it copies a disk many times")
	requireTools(t, "zstd", "qemu-img", "bash")
	raw := randomRaw(t, 60*mib+4096, 11)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	mustVhdxfs(t, "convert", "--block-size", "2M", raw, path("dynamic.vhdx"))
	mustVhdxfs(t, "convert", "--type", "fixed", "--block-size", "4M", raw, path("fixed.vhdx"))
	mustVhdxfs(t, "convert", "--logical-sector-size", "4096", raw, path("4096.vhdx"))
	mustVhdxfs(t, "snapshot", path("dynamic.vhdx"), path("child.avhdx"))
	for _, image := range []string{"dynamic.vhdx", "fixed.vhdx", "4096.vhdx", "child.avhdx"} {
		for _, format := range []string{"", "-O raw", "-O vhdx"} {
			out := path("there.vhdx")
			// What stands between is what `ssh HOST` would be.
			said, ok := pipeline(t, `$vhdxfs convert `+format+` "$1" - | zstd -q | bash -c 'zstd -q -d | "$vhdxfs" convert - "$0"' "$2"`, path(image), out)
			if !ok || strings.Contains(said, "temporary file") {
				t.Fatalf("%s %s: %s", image, format, said)
			}
			mustVhdxfs(t, "compare", raw, out)
			checkClean(t, out)
			if image != "4096.vhdx" { // which QEMU does not open
				must(t, "qemu-img", "compare", "-f", "vhdx", "-F", "raw", out, raw)
			}
			if format == "-O vhdx" && image != "child.avhdx" {
				want, got := info(t, path(image)), info(t, out)
				if want.Type != got.Type || want.BlockSize != got.BlockSize || want.LogicalSectorSize != got.LogicalSectorSize {
					t.Errorf("%s arrived as %+v", image, got)
				}
			}
			must(t, "rm", out)
		}
	}
	// The stream is an image by itself.
	if said, ok := pipeline(t, `$vhdxfs convert -O vhdx --json "$1" - >"$2"`, path("dynamic.vhdx"), path("stream.vhdx")); !ok || !strings.Contains(said, `"output": "-"`) {
		t.Fatal(said)
	}
	checkClean(t, path("stream.vhdx"))
	must(t, "qemu-img", "compare", "-f", "vhdx", "-F", "raw", path("stream.vhdx"), raw)
	if got, want := info(t, path("stream.vhdx")).AllocatedBytes, info(t, path("dynamic.vhdx")).AllocatedBytes; got != want {
		t.Errorf("the stream has %d bytes of blocks, the image %d", got, want)
	}
	// What cannot be read in one pass goes through a file without a name.
	said, ok := pipeline(t, `cat "$1" | $vhdxfs convert -o parent_dir="$3" - "$2"`, path("child.avhdx"), path("spooled.raw"), dir)
	if !ok || !strings.Contains(said, "temporary file in "+dir) {
		t.Fatal(said)
	}
	mustVhdxfs(t, "compare", raw, path("spooled.raw"))
	said, ok = pipeline(t, `cat "$1" | TMPDIR="$3" $vhdxfs convert -O vhdx - - | cat >"$2"`, raw, path("both.vhdx"), dir)
	if !ok || !strings.Contains(said, "temporary file in "+dir) {
		t.Fatal(said)
	}
	mustVhdxfs(t, "compare", raw, path("both.vhdx"))
	if list := must(t, "ls", "-A", dir); strings.Contains(list, ".part") || strings.Contains(list, "vhdxfs-input") {
		t.Error(list)
	}
}

// A pipe that breaks at either end is an error, and nothing half is left.
func TestBrokenPipe(t *testing.T) {
	t.Parallel()
	requireTools(t, "bash", "script", "sfdisk")
	raw := randomRaw(t, 40*mib, 12)
	if err := os.Truncate(raw, 50*mib); err != nil { // the last bytes are zero
		t.Fatal(err)
	}
	dir := t.TempDir()
	image, out := filepath.Join(dir, "disk.vhdx"), filepath.Join(dir, "out.vhdx")
	mustVhdxfs(t, "convert", "--block-size", "1M", raw, image)
	for _, format := range []string{"raw", "vhdx"} {
		said, ok := pipeline(t, `$vhdxfs convert -O `+format+` "$1" - | head -c 5000000 >/dev/null`, image)
		if ok || !strings.Contains(said, "broken pipe") || strings.Count(said, "\n") != 1 {
			t.Errorf("%s: %t, %q", format, ok, said)
		}
		if said, ok := pipeline(t, `$vhdxfs convert -O `+format+` "$1" - >/dev/full`, image); ok || !strings.Contains(said, "no space left") {
			t.Errorf("%s: %t, %q", format, ok, said)
		}
	}
	whole, ok := pipeline(t, `$vhdxfs convert -O vhdx "$1" - 2>/dev/null | wc -c >&2`, image)
	size, err := strconv.Atoi(strings.TrimSpace(whole))
	if !ok || err != nil {
		t.Fatal(whole, err)
	}
	for _, n := range some([]int{size - 1, size / 2, 4*mib + 1, 3 * mib, mib + 5, 1000, 1}) {
		for _, to := range []string{out, filepath.Join(dir, "out.raw")} {
			said, ok := pipeline(t, `$vhdxfs convert -O vhdx "$1" - 2>/dev/null | head -c `+strconv.Itoa(n)+` | $vhdxfs convert -f vhdx - "$2"`, image, to)
			if ok || !strings.Contains(said, "cut off") && !strings.Contains(said, "not a VHDX file") {
				t.Errorf("%d bytes: %t, %q", n, ok, said)
			}
			missing(t, to)
		}
	}
	// A raw disk has no end that can be known, but its partitions have.
	mustPipe(t, `printf 'label: gpt\nsize=8M\nsize=8M\n' | sfdisk -q "$1"`, raw)
	for size, want := range map[string]string{"49M": "backup", "10M": "partition 2 on it ends at 17 MiB"} {
		said, ok := pipeline(t, `head -c `+size+` "$1" | $vhdxfs convert - "$2"`, raw, out)
		if ok || !strings.Contains(said, want) || !strings.Contains(said, "cut off") {
			t.Errorf("%t, %q", ok, said)
		}
		missing(t, out)
	}
	mustPipe(t, `head -c 49M "$1" | $vhdxfs convert -f raw - "$2"`, raw, out)

	terminal, err := exec.Command("script", "--quiet", "--return", "--command", program.path(t)+" convert "+image+" -", "/dev/null").CombinedOutput()
	if err == nil || !strings.Contains(string(terminal), "standard output is a terminal") || len(terminal) > 200 {
		t.Errorf("%v, %q", err, terminal)
	}
	said, ok := pipeline(t, `cp "$1" "$2" && $vhdxfs convert --force "$2" - 1<>"$2"`, image, filepath.Join(dir, "same.vhdx"))
	if ok || !strings.Contains(said, "standard output is also an input") {
		t.Errorf("%t, %q", ok, said)
	}
	mustVhdxfs(t, "compare", image, filepath.Join(dir, "same.vhdx"))
}

func mustPipe(t *testing.T, line string, args ...string) {
	t.Helper()
	if said, ok := pipeline(t, line, args...); !ok {
		t.Fatal(said)
	}
}

// Where the program was started without standard output, what should go there is lost, and that is an error. It is none where it is
// thrown away on purpose, nor for what only tells how it went.
func TestClosedStandardOutput(t *testing.T) {
	t.Parallel()
	requireTools(t, "bash")
	dir := t.TempDir()
	base, image := filepath.Join(dir, "base.vhdx"), filepath.Join(dir, "disk.vhdx")
	raw := randomRaw(t, 5*mib, 14)
	mustVhdxfs(t, "convert", raw, image)
	mustVhdxfs(t, "create", base, "5M")
	for _, line := range []string{
		`convert "$1" -`, `convert -O vhdx "$1" -`, `convert -O vhd --type fixed "$1" -`, `diff --output - "$2" "$1"`,
		`hash --blocks - "$1"`, `map --svg - "$1"`, `map --png - "$1"`,
	} {
		said, ok := pipeline(t, "$vhdxfs "+line+" >&-", image, base)
		if ok || !strings.Contains(said, "standard output is closed") || strings.Count(said, "\n") != 1 {
			t.Errorf("%s: %t, %q", line, ok, said)
		}
		if said, ok := pipeline(t, "$vhdxfs "+line+" >/dev/null", image, base); !ok {
			t.Errorf("%s, thrown away: %q", line, said)
		}
	}
	mustPipe(t, `$vhdxfs convert "$1" "$2" >&-`, image, filepath.Join(dir, "out.raw"))
	sameContent(t, filepath.Join(dir, "out.raw"), raw)
	// An empty stream is none of a disk, in any format: its writer may have failed.
	for _, line := range []string{
		`convert - "$1"`, `convert -f vhdx - "$1"`, `convert -O raw - "$1"`, `convert -f raw -O raw - "$1"`, `convert -O vhd - "$1"`,
		`convert - - >"$1"`, `create --from - "$1"`, `apply - "$2"`,
	} {
		for _, from := range []string{"<&-", "</dev/null", "< <(true)"} {
			said, ok := pipeline(t, "rm -f \"$1\"; $vhdxfs "+line+" "+from, filepath.Join(dir, "new.vhdx"), base)
			if lines := strings.Split(strings.TrimSpace(said), "\n"); ok || strings.Count(said, "vhdxfs: ") > 2 || !strings.Contains(lines[len(lines)-1], "empty") && !strings.Contains(line, "apply") {
				t.Errorf("%s %s: %t, %q", line, from, ok, said)
			}
			if st, err := os.Stat(filepath.Join(dir, "new.vhdx")); err == nil && (st.Size() > 0 || !strings.Contains(line, ">")) {
				t.Errorf("%s %s has left a file", line, from)
			}
			missing(t, base+".apply")
		}
	}
}

// A program whose pipe nobody reads ends when it is told to.
func TestInterruptedStream(t *testing.T) {
	t.Parallel()
	raw := randomRaw(t, 40*mib, 13)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.CommandContext(t.Context(), program.path(t), "convert", raw, "-")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := r.Read(make([]byte, 1)); err != nil { // it writes, and then waits
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("it waits for its reader")
	}
	if cmd.ProcessState.ExitCode() != 130 || !strings.Contains(said.String(), "interrupted") {
		t.Errorf("%v, %q", cmd.ProcessState, said.String())
	}
}
