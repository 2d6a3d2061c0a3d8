// Command bench measures how fast a mounted disk is, next to the same disk shown by qemu-storage-daemon, to a raw file
// that go-fuse serves, and to a plain file. It needs root, fio, fuse3, qemu-utils and xfsprogs, and takes some minutes:
//
//	go run ./test/bench -rounds 5 -svg speed.svg
//
// Machines are noisy, so only ratios within one run count. The contestants take turns, the first one changing from round
// to round; a ratio is taken in each round, and the table shows the median.
package main

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("bench: ")
	if len(os.Args) == 4 && os.Args[1] == serveFlag {
		if err := serveRawFile(os.Args[2], os.Args[3]); err != nil {
			log.Fatal(err)
		}
		return
	}
	var (
		program = flag.String("vhdxfs", "", "the program to measure; built from this checkout if not given")
		rounds  = flag.Int("rounds", 3, "how often each is measured")
		seconds = flag.Int("seconds", 3, "how long a measurement takes")
		size    = flag.Int64("size", 512, "of the disk, in MiB")
		only    = flag.String("workloads", "", "regular expression: measure only those")
		options = flag.String("o", "rw", "mount options for vhdxfs")
		dir     = flag.String("dir", "", "directory for the images; not in a tmpfs, which is faster than any disk")
		svg     = flag.String("svg", "", "file to draw the ratios into")
		farm    = flag.Int("children", 0, "mount so many children of one parent, too, and print what each costs")
	)
	flag.Parse()
	if err := measureAll(*program, *options, *dir, *only, *svg, *rounds, *farm, bench{seconds: *seconds, size: *size << 20}); err != nil {
		log.Fatal(err)
	}
}

func measureAll(program, options, dir, only, svg string, rounds, children int, b bench) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("only root can empty the kernel's caches")
	}
	wanted, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(dir, "vhdxfs-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if b.memory, err = os.MkdirTemp("/dev/shm", "vhdxfs-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.memory)
	unmount, err := b.mountShared()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	if program == "" {
		program = filepath.Join(b.dir, "vhdxfs")
		built, _ := debug.ReadBuildInfo()
		if err := run("env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, built.Main.Path); err != nil {
			return err
		}
	}
	b.program = program
	self, err := os.Executable()
	if err != nil {
		return err
	}
	own := filepath.Join(b.dir, "go-fuse")
	if err := run("cp", self, own); err != nil {
		return err
	}
	contestants := present([]contestant{
		{"vhdxfs", mountVHDXFS(program, options), "vhdx", []string{program, "convert"}},
		{"qemu", mountQEMU, "vhdx", []string{"qemu-img", "convert", "-O", "raw"}},
		{"go-fuse", mountRawFile(own), "raw", nil},
		{"plain file", mountNothing, "raw", []string{"cp", "--reflink=auto"}},
	})
	var results table
	for round := range rounds {
		for _, w := range workloads {
			if !wanted.MatchString(w.name) {
				continue
			}
			for i := range contestants {
				c := contestants[(i+round)%len(contestants)]
				if c.name == w.without {
					continue
				}
				m, err := b.measure(c, w)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", w.name, c.name, err)
				}
				fmt.Fprintf(os.Stderr, "round %d  %-32s %-12s %10.0f %s\n", round+1, w.name, c.name, m.rate, w.unit)
				results.add(w, c, m)
			}
		}
	}
	results.print(os.Stdout, contestants)
	if children > 0 {
		if err := b.farm(os.Stdout, contestants[0], children); err != nil {
			return fmt.Errorf("%d children: %w", children, err)
		}
	}
	if svg == "" {
		return nil
	}
	return os.WriteFile(svg, results.svg(contestants), 0o644)
}

// present leaves out, and says so, who is not installed.
func present(all []contestant) []contestant {
	if _, err := exec.LookPath("qemu-storage-daemon"); err != nil {
		log.Print("qemu-storage-daemon is not installed (Debian: qemu-system-common), and left out")
		return append(all[:1], all[2:]...)
	}
	return all
}
