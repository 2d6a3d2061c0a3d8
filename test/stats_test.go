package test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// stats returns the statistics of a mount, as the attribute with all of them has them.
func (s *served) stats(t *testing.T) map[string]int64 {
	t.Helper()
	b := make([]byte, 64<<10)
	n, err := unix.Getxattr(s.disk, "user.vhdx.stats", b)
	if err != nil {
		t.Fatal(err)
	}
	var stats map[string]int64
	if err := json.Unmarshal(b[:n], &stats); err != nil {
		t.Fatalf("%v: %s", err, b[:n])
	}
	return stats
}

// gauges are the statistics that go up and down; all others count.
var gauges = map[string]bool{"writers": true, "cache_pages": true, "dirty_pages": true, "pages_in_log": true, "allocated_bytes": true}

// Each step of a known sequence of operations adds to the numbers what it did, and nothing else.
func TestStatsAreExact(t *testing.T) {
	detectRaces(t)
	// Nothing happens by itself, and the kernel's cache answers nothing.
	img := create(t, "64MiB", "--block-size", "1MiB")
	s := serve(t, img, "-o", "commit=0,idle_clean=0,direct_io,discard=unmap")
	f, err := os.OpenFile(s.disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, 64<<10)
	for i := range data {
		data[i] = byte(i%251) + 1
	}
	const block = 1 << 20
	for _, step := range []struct {
		name string
		do   func() error
		want map[string]int64 // what it adds; of a gauge, too
	}{
		{"read a hole", func() error { _, err := f.ReadAt(make([]byte, 4096), 7*block); return err },
			map[string]int64{"reads": 1, "read_bytes": 4096, "zero_reads": 1}},
		{"write to a new block", func() error { _, err := f.WriteAt(data, 0); return err },
			map[string]int64{"writes": 1, "written_bytes": 64 << 10, "blocks_allocated": 1, "allocated_bytes": block,
				"dirty_pages": 1, "header_updates": 1, "file_syncs": 2, "cache_pages": 1}},
		{"write to it again", func() error { _, err := f.WriteAt(data[:512], 512); return err },
			map[string]int64{"writes": 1, "written_bytes": 512}},
		{"sync", f.Sync,
			map[string]int64{"syncs": 1, "log_entries": 2, "logged_pages": 1, "header_updates": 1, "file_syncs": 4,
				"dirty_pages": -1, "pages_in_log": 1}},
		{"sync of nothing", f.Sync, map[string]int64{"syncs": 1}},
		{"read it", func() error { _, err := f.ReadAt(make([]byte, 32<<10), 1000); return err },
			map[string]int64{"reads": 1, "read_bytes": 32 << 10}},
		{"discard it", func() error {
			return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 2*block)
		}, map[string]int64{"discards": 1, "discarded_bytes": 2 * block, "blocks_freed": 1, "allocated_bytes": -block, "dirty_pages": 1}},
		{"zero what is zero", func() error {
			return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, 0, block)
		}, map[string]int64{"zeroings": 1, "zeroed_bytes": block}},
		{"reserve space", func() error { return unix.Fallocate(int(f.Fd()), 0, 3*block, block) },
			map[string]int64{"allocations": 1, "blocks_allocated": 1, "allocated_bytes": block}},
		{"close", f.Close,
			map[string]int64{"log_entries": 1, "logged_pages": 1, "checkpoints": 1, "header_updates": 1, "file_syncs": 5,
				"dirty_pages": -1, "pages_in_log": -1, "writers": -1}},
	} {
		before := s.stats(t)
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if step.name == "close" { // the kernel tells of it a moment later
			eventually(t, "the image to be clean", func() bool { return s.stats(t)["checkpoints"] > before["checkpoints"] })
			eventually(t, "the file to be cut", func() bool { return s.stats(t)["file_syncs"] >= before["file_syncs"]+step.want["file_syncs"] })
		}
		after := s.stats(t)
		for name := range maps.Keys(after) {
			switch got := after[name] - before[name]; {
			case strings.HasPrefix(name, "cache_") && name != "cache_pages": // how often a page is looked up is nobody's business
				if got < 0 {
					t.Errorf("%s: %s went back by %d", step.name, name, -got)
				}
			case got != step.want[name]:
				t.Errorf("%s: %s changed by %d, want %d", step.name, name, got, step.want[name])
			}
		}
		for name := range step.want {
			if _, ok := after[name]; !ok {
				t.Errorf("there is no %s", name)
			}
		}
	}

	// Each number is an attribute by itself, of the directory as well.
	want := s.stats(t)
	requireTools(t, "getfattr")
	for _, path := range []string{s.disk, s.dir} {
		dump := must(t, "getfattr", "--absolute-names", "-d", "-m", `^user\.vhdx\.stats\.`, path)
		got := map[string]int64{}
		for line := range strings.Lines(dump) {
			if name, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && strings.HasPrefix(name, "user.") {
				got[strings.TrimPrefix(name, "user.vhdx.stats.")], _ = strconv.ParseInt(strings.Trim(v, `"`), 10, 64)
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("getfattr of %s: %v, want %v", path, got, want)
		}
	}
}

// SIGUSR1 writes the statistics to the log, however little else is logged, and the mount goes on.
func TestStatsSignal(t *testing.T) {
	t.Parallel()
	img := create(t, "64MiB")
	for _, level := range []string{"error", "warn", "debug"} {
		s := serve(t, img, "-o", "loglevel="+level)
		writeAt(t, s.disk, []byte("hello"), 1<<20)
		if err := s.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the statistics in the log", func() bool {
			log := s.log.String()
			return strings.Contains(log, "statistics of "+s.dir) && strings.Contains(log, " writes 1,") &&
				strings.Contains(log, " written_bytes 5")
		})
		if n := s.stats(t)["writes"]; n != 1 {
			t.Errorf("after the signal: %d writes, want 1", n)
		}
		s.end(t)
	}
}

// mountInfo returns the metric that tells what is mounted, with its labels.
func mountInfo(t *testing.T, values map[string]string) string {
	t.Helper()
	for name, v := range values {
		if strings.HasPrefix(name, "vhdxfs_mount_info{") && v == "1" {
			return name
		}
	}
	t.Error("there is no vhdxfs_mount_info")
	return ""
}

// scrape returns what a metrics socket answers at /metrics: the values by the names, and the type of each metric.
func scrape(t *testing.T, socket string) (values map[string]string, types map[string]string) {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	r, err := client.Get("http://vhdxfs/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK || !strings.HasPrefix(r.Header.Get("Content-Type"), "text/plain") {
		t.Fatalf("GET /metrics: %s, %s", r.Status, r.Header.Get("Content-Type"))
	}
	values, types = map[string]string{}, map[string]string{}
	lines := bufio.NewScanner(r.Body)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		switch {
		case len(f) == 4 && f[1] == "TYPE":
			types[f[2]] = f[3]
		case len(f) >= 2 && f[0] != "#":
			values[strings.Join(f[:len(f)-1], " ")] = f[len(f)-1]
		}
	}
	return values, types
}

// The socket tells what the attributes tell.
func TestMetrics(t *testing.T) {
	detectRaces(t)
	img := create(t, "64MiB")
	socket := filepath.Join(t.TempDir(), "metrics.sock")
	s := serve(t, img, "-o", "idle_clean=0,commit=0,metrics=unix:"+socket)
	writeAt(t, s.disk, make([]byte, 8192), 0)

	st, err := os.Lstat(socket)
	if err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("the socket is %v, %v; want one for its owner alone", st.Mode(), err)
	}
	eventually(t, "the close of disk.raw", func() bool { return s.stats(t)["writers"] == 0 })
	want := s.stats(t)
	values, types := scrape(t, socket)
	for name, v := range want {
		kind := "gauge"
		if !gauges[name] {
			name, kind = name+"_total", "counter"
		}
		name = "vhdxfs_" + name
		got, err := strconv.ParseFloat(values[name], 64)
		if err != nil || int64(got) != v || types[name] != kind {
			t.Errorf("%s is %q, a %q; want %d, a %s", name, values[name], types[name], v, kind)
		}
	}
	for name := range types {
		if !strings.HasPrefix(name, "vhdxfs_") {
			t.Errorf("the name %s is not ours alone", name)
		}
	}
	for _, name := range []string{"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"} {
		if v, err := strconv.ParseFloat(values[name], 64); err != nil || v <= 0 && name != "process_cpu_seconds_total" {
			t.Errorf("%s is %q", name, values[name])
		}
	}
	about := mountInfo(t, values)
	for _, label := range []string{
		fmt.Sprintf("image=%q", img), fmt.Sprintf("mount_point=%q", s.dir), `mode="rw"`, `type="dynamic"`,
	} {
		if !strings.Contains(about, label) {
			t.Errorf("vhdxfs_mount_info %s lacks %s", about, label)
		}
	}
	child := filepath.Join(filepath.Dir(img), "child.vhdx")
	mustVhdxfs(t, "snapshot", s.dir, child)
	values, _ = scrape(t, socket)
	for _, label := range []string{fmt.Sprintf("image=%q", child), `type="differencing"`} {
		if about := mountInfo(t, values); !strings.Contains(about, label) {
			t.Errorf("after a snapshot: vhdxfs_mount_info %s lacks %s", about, label)
		}
	}
	s.end(t)
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket after the end: %v", err)
	}
}

// What is in the way of the socket is replaced if nobody needs it, and else is a reason not to mount.
func TestMetricsSocketInTheWay(t *testing.T) {
	t.Parallel()
	img := create(t, "64MiB")
	dir := t.TempDir()
	socket := filepath.Join(dir, "metrics.sock")
	option := "metrics=unix:" + socket

	requireFUSE(t)
	s := serveToKill(t, img, "-o", option)
	s.kill()
	if _, err := os.Lstat(socket); err != nil {
		t.Fatalf("a program that is killed leaves its socket: %v", err)
	}
	serve(t, img, "-o", option)
	if values, _ := scrape(t, socket); values["vhdxfs_reads_total"] == "" {
		t.Errorf("metrics after a stale socket was replaced: %v", values)
	}

	other := create(t, "64MiB")
	long := filepath.Join(dir, strings.Repeat("x", 120))
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, option string
		status       int
		want         string
	}{
		{"in use", option, 32, "another program listens on " + socket},
		{"a file", "metrics=unix:" + file, 32, "is not a socket"},
		{"no directory", "metrics=unix:" + dir + "/no/metrics.sock", 32, "no such file or directory"},
		{"too long", "metrics=unix:" + long, 1, "at most 107 bytes"},
		{"no path", "metrics=unix:", 1, "unix:"},
		{"another network", "metrics=tcp:9100", 1, "unix:"},
	} {
		mnt := newDir(t)
		r := vhdxfs(t, "-o", tc.option, other, mnt)
		if r.status != tc.status || !strings.Contains(r.stderr, tc.want) {
			t.Errorf("%s: status %d, %q; want %d, %q", tc.name, r.status, r.stderr, tc.status, tc.want)
		}
		if _, mounted := mountAt(mnt); mounted {
			t.Errorf("%s: it is mounted", tc.name)
			unmount(t, mnt)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "kept" {
		t.Errorf("the file in the way holds %q, %v", b, err)
	}
	scrape(t, socket) // of the mount that was there before
}

// stats shows the numbers of a mount, top what they become, and df what the image holds.
func TestStatsForPeople(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	img := create(t, "64MiB")
	s := serve(t, img)
	writeAt(t, s.disk, fill(1), 0)
	if out := mustVhdxfs(t, "stats", img); !strings.Contains(words(out), "1 writes") {
		t.Errorf("stats:\n%s", out)
	}
	if out := mustVhdxfs(t, "top", "--count", "2", s.dir); strings.Count(out, "\n") != 3 || !strings.Contains(out, "WRITTEN/s") || !strings.Contains(out, "1 MiB") {
		t.Errorf("top:\n%s", out)
	}
	if out := words(must(t, "df", "--output=pcent", s.dir)); out != "Use% 2%" {
		t.Errorf("df: %s", out)
	}
	s.end(t)
	if r := vhdxfs(t, "stats", img); r.status != 6 || !strings.Contains(r.stderr, "is not mounted") {
		t.Errorf("of an image that is not mounted: status %d, %s", r.status, r.stderr)
	}
}
