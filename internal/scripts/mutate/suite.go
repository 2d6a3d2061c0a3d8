package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A suite is the tests of one package, tried on mutants of it or of others.
type suite struct {
	from string // the package whose tests run
	temp string
	learned
	binary string          // with the mutants of the last build
	good   map[string]bool // tests that are known to pass in it without a mutant
}

type learned struct {
	Tests   []*test
	Counted map[string][]extent // all that coverage counts, by file
}

// A test is one of a suite, with what it reaches.
type test struct {
	Name    string
	Time    time.Duration
	Reaches map[string][]extent // by file
}

// An extent is a part of a file, as the coverage of the go command has it.
type extent struct{ FromLine, FromCol, ToLine, ToCol int }

func (e extent) has(line, col int) bool {
	return (line > e.FromLine || line == e.FromLine && col >= e.FromCol) &&
		(line < e.ToLine || line == e.ToLine && col < e.ToCol)
}

func (e extent) overlaps(fromLine, toLine int) bool {
	return e.FromLine <= toLine && e.ToLine >= fromLine
}

// patience is how long tests of a mutant may take beyond five times their usual time before they count as hanging.
const patience = 10 * time.Second

// newSuite runs each test alone, to learn what it reaches in packages and how long it takes. A test that fails is left out.
// What it learns is kept beside the results.
func newSuite(from string, dirs []string) (s *suite, err error) {
	s = &suite{from: from}
	if s.temp, err = openDir(""); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	s.binary = filepath.Join(s.temp, "covered.test")
	known, err := s.knownFile(dirs)
	if err != nil {
		return nil, err
	}
	if b, err := os.ReadFile(known); err == nil && json.Unmarshal(b, &s.learned) == nil {
		return s, nil
	}
	covered := "-coverpkg=./" + strings.Join(dirs, ",./")
	if out, err := goCommand("test", "-c", "-cover", covered, "-o", s.binary, "./"+from); err != nil {
		return nil, fmt.Errorf("build the tests of %s: %w\n%s", from, err, out)
	}
	out, err := s.command(context.Background(), "-test.list", ".").Output()
	if err != nil {
		return nil, fmt.Errorf("list the tests of %s: %w", from, err)
	}
	wanted, err := regexp.Compile(*run)
	if err != nil {
		return nil, err
	}
	not, err := regexp.Compile(*skip)
	if err != nil {
		return nil, err
	}
	for name := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(name, "Benchmark") || !wanted.MatchString(name) || *skip != "" && not.MatchString(name) {
			continue
		}
		if err := s.explore(name); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(s.Tests, func(a, b *test) int { return int(a.Time - b.Time) })
	if known == "" {
		return s, nil
	}
	b, err := json.Marshal(s.learned)
	if err != nil {
		return nil, err
	}
	return s, os.WriteFile(known, b, 0o600)
}

// knownFile returns the name of the file that keeps what is learned, which depends on the sources and on which tests run.
func (s *suite) knownFile(dirs []string) (string, error) {
	if *resultsFile == "" {
		return "", nil
	}
	h := sha256.New()
	fmt.Fprintln(h, s.from, dirs, *run, *skip, *long)
	for _, dir := range append([]string{s.from}, dirs...) {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			return "", err
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				return "", err
			}
			h.Write(b)
		}
	}
	return fmt.Sprintf("%s.tests-%x", *resultsFile, h.Sum(nil)[:8]), nil
}

// openDir makes a temporary directory that others can use: some tests run a program as another user.
func openDir(parent string) (string, error) {
	dir, err := os.MkdirTemp(parent, "mutate-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755) // #nosec G302 -- see above
}

func (s *suite) close() { os.RemoveAll(s.temp) }

// explore runs one test of the unbroken package.
func (s *suite) explore(name string) error {
	profile := filepath.Join(s.temp, "profile")
	start := time.Now()
	result, out, err := s.run(0, 10*time.Minute, []*test{{Name: name}}, "-test.coverprofile="+profile)
	if err != nil {
		return err
	}
	t := &test{Name: name, Time: time.Since(start)}
	if result != survived {
		fmt.Printf("%s: %s is left out, because it fails alone:\n%s\n", s.from, name, out)
		return nil
	}
	s.Counted, t.Reaches, err = readProfile(profile)
	s.Tests = append(s.Tests, t)
	return err
}

var profileLine = regexp.MustCompile(`^(.*):(\d+)\.(\d+),(\d+)\.(\d+) \d+ (\d+)$`)

// readProfile returns all extents, and those that ran, by the paths of their files from the root of the module.
func readProfile(path string) (all, ran map[string][]extent, err error) {
	module, err := exec.Command("go", "list", "-m").Output()
	if err != nil {
		return nil, nil, fmt.Errorf("find the module: %w", err)
	}
	root := strings.TrimSpace(string(module)) + "/"
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	all, ran = map[string][]extent{}, map[string][]extent{}
	s := bufio.NewScanner(f)
	for s.Scan() {
		if p := profileLine.FindStringSubmatch(s.Text()); p != nil {
			var n [4]int
			for i := range n {
				n[i], _ = strconv.Atoi(p[2+i])
			}
			file, e := strings.TrimPrefix(p[1], root), extent{n[0], n[1], n[2], n[3]}
			all[file] = append(all[file], e)
			if p[6] != "0" {
				ran[file] = append(ran[file], e)
			}
		}
	}
	return all, ran, s.Err()
}

// build makes the binary with mutants, and marks those that do not compile.
func (s *suite) build(dir string, mutants []*mutant) error {
	s.binary = filepath.Join(s.temp, "mutants.test")
	s.good = map[string]bool{}
	return buildSelection(dir, s.from, s.binary, s.temp, mutants)
}

// isGood tells whether a test passes in the binary without a mutant. If not, it is left out from then on: it may count the
// allocations of a function, which now is a larger one.
func (s *suite) isGood(name string) (bool, error) {
	if name == "" || s.good[name] {
		return true, nil
	}
	result, out, err := s.run(0, 10*time.Minute, []*test{{Name: name}})
	if err != nil {
		return false, err
	}
	if s.good[name] = result == survived; !s.good[name] {
		fmt.Printf("%s: %s is left out, because it fails without a mutant:\n%s\n", s.from, name, out)
		s.Tests = slices.DeleteFunc(s.Tests, func(t *test) bool { return t.Name == name })
	}
	return s.good[name], nil
}

// try runs the tests that reach a mutant, the fast ones first, and returns what becomes of it and the test that noticed.
func (s *suite) try(m *mutant) (result, by string, err error) {
	if m.invalid {
		return invalid, "", nil
	}
	if m.alone {
		ok, err := buildAlone(m, s.from, s.binary+".alone", s.temp)
		if err != nil || !ok {
			return invalid, "", err
		}
		defer func(b string) { s.binary = b }(s.binary)
		s.binary += ".alone"
	}
	left := s.reaching(m)
	if len(left) == 0 {
		return unreached, "", nil
	}
	if *most > 0 {
		n, sum := 1, left[0].Time
		for n < len(left) && sum+left[n].Time <= *most {
			sum += left[n].Time
			n++
		}
		left = left[:n]
	}
	// Starting a process takes longer than most tests. So the first processes run few tests, and the later ones many.
	for limit := 200 * time.Millisecond; len(left) > 0; limit *= 4 {
		n, sum := 0, time.Duration(0)
		for n < len(left) && (n == 0 || sum+left[n].Time <= limit) {
			sum += left[n].Time
			n++
		}
		result, out, err := s.runPatiently(m.id, 5*sum+patience, left[:n])
		if result != survived || err != nil {
			by := ""
			if f := failLine.FindSubmatch(out); f != nil {
				by = string(f[1])
			}
			if m.alone || err != nil {
				return result, by, err
			}
			if good, err := s.isGood(by); !good && err == nil {
				return s.try(m)
			} else {
				return result, by, err
			}
		}
		left = left[n:]
	}
	return survived, "", nil
}

var failLine = regexp.MustCompile(`(?m)^--- FAIL: (\S+)`)

// reaching returns the tests that reach a mutant: those that reach its place, or, if coverage does not know its place,
// those that reach its function, or all of them if it is outside functions.
func (s *suite) reaching(m *mutant) []*test {
	if m.function == "" {
		return s.Tests
	}
	file := filepath.Join(m.dir, m.file)
	place := func(e extent) bool { return e.has(m.line, m.col) }
	if !slices.ContainsFunc(s.Counted[file], place) {
		place = func(e extent) bool { return e.overlaps(m.first, m.last) }
	}
	var reaching []*test
	for _, t := range s.Tests {
		if slices.ContainsFunc(t.Reaches[file], place) {
			reaching = append(reaching, t)
		}
	}
	return reaching
}

// runPatiently is run, but gives more time if the machine is so busy that the unbroken package does not get by with it.
func (s *suite) runPatiently(id int, timeout time.Duration, tests []*test) (result string, out []byte, err error) {
	for {
		if result, out, err = s.run(id, timeout, tests); result != hangs || id == 0 || err != nil {
			return result, out, err
		}
		if unbroken, _, err := s.run(0, timeout, tests); unbroken != hangs || err != nil {
			return result, out, err
		}
		timeout *= 3
	}
}

// run runs tests with a mutant, 0 for none, in a process group and, as root, in a mount namespace of their own: what hangs
// or stays mounted ends with them.
func (s *suite) run(id int, timeout time.Duration, tests []*test, args ...string) (result string, out []byte, err error) {
	temp, err := openDir(s.temp)
	if err != nil {
		return "", nil, err
	}
	defer os.RemoveAll(temp)
	var names []string
	for _, t := range tests {
		names = append(names, regexp.QuoteMeta(t.Name))
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	args = append(args, "-test.failfast", "-test.run", "^("+strings.Join(names, "|")+")$")
	if !*long {
		args = append(args, "-test.short")
	}
	cmd := s.command(ctx, args...)
	cmd.Env = append(os.Environ(), variable+"="+strconv.Itoa(id), "TMPDIR="+temp, "GOTMPDIR="+temp)
	var all bytes.Buffer
	cmd.Stdout, cmd.Stderr = &all, &all
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return hangs, all.Bytes(), nil
	case errors.As(err, &exit):
		return noticed, all.Bytes(), nil
	case errors.Is(err, exec.ErrWaitDelay): // something that it started still holds its output
		return noticed, all.Bytes(), nil
	case err != nil:
		return "", nil, err
	}
	return survived, nil, nil
}

func (s *suite) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.binary, args...)
	cmd.Dir = s.from
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// goCommand runs the go command.
func goCommand(args ...string) ([]byte, error) {
	return exec.Command("go", args...).CombinedOutput()
}
