package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/vhdxfs/vhdxfs/vhdx"
	"golang.org/x/sys/unix"
)

const (
	mib = 1 << 20
	tib = 1 << 40

	sparseSize = 2048 * mib
)

// image returns an image of a kind. It is made once for each format, but anew where it had been empty.
func (b bench) image(c contestant, kind imageKind) (string, error) {
	name := filepath.Join(b.dir, string(kind)+"."+c.format)
	if _, err := os.Stat(name); err == nil && kind != emptyImage && kind != emptyLarge {
		return name, nil
	}
	switch kind {
	case chain10:
		return b.chain(c, 10, name)
	case chain100:
		return b.chain(c, 100, name)
	case partial100:
		return b.partial(c, 100, name)
	case hugeImage:
		if c.format == "raw" {
			return name, makeHugeFile(name)
		}
		return name, run("qemu-img", "create", "-q", "-f", c.format, "-o", "block_size=1M", name, "64T")
	case emptyImage, emptyLarge:
		args := []string{"create", "-q", "-f", c.format}
		switch {
		case c.format != "vhdx":
		case kind == emptyLarge:
			args = append(args, "-o", "block_size=32M")
		default:
			args = append(args, "-o", "block_size=1M")
		}
		return name, run("qemu-img", append(args, name, fmt.Sprint(b.size))...)
	}
	raw := filepath.Join(b.dir, "contents")
	defer os.Remove(raw)
	block := "32M"
	err := makeRandom(raw, b.size, b.size, b.size)
	if kind == sparseImage {
		block = "1M"
		err = makeRandom(raw, sparseSize, mib, 64*mib)
	}
	if err != nil {
		return "", err
	}
	args := []string{"convert", "-f", "raw", "-O", c.format}
	if c.format == "vhdx" {
		args = append(args, "-o", "block_size="+block)
	}
	return name, run("qemu-img", append(args, raw, name)...)
}

// chain puts empty layers over the full image, for a contestant that has such, and returns the topmost.
func (b bench) chain(c contestant, layers int, name string) (string, error) {
	return b.layers(c, layers, name, func(string) error { return nil })
}

// partial puts layers over the full image of which each holds one page of every 128, in blocks that are present in part.
func (b bench) partial(c contestant, layers int, name string) (string, error) {
	const page, each = 4 << 10, 128
	data := make([]byte, page)
	first := int64(0)
	return b.layers(c, layers, name, func(child string) error {
		im, err := vhdx.Open(child, vhdx.Options{Writable: true})
		if err != nil {
			return err
		}
		for off := first; off < b.size && err == nil; off += each * page {
			data[0]++
			_, err = im.WriteAt(data, off)
		}
		first += page
		return errors.Join(err, im.Close())
	})
}

// layers puts layers over a full image, for a contestant that has such, calls fill for each, and returns the topmost.
func (b bench) layers(c contestant, n int, name string, fill func(child string) error) (string, error) {
	if c.format == "raw" {
		return b.image(c, fullImage)
	}
	image, err := b.image(c, parentImage)
	if err != nil {
		return "", err
	}
	for i := range n {
		child := name
		if i < n-1 {
			child = fmt.Sprintf("%s.%d", name, i)
		}
		if err := run(b.program, "create", "--parent", image, child); err != nil {
			return "", err
		}
		if err := fill(child); err != nil {
			return "", err
		}
		image = child
	}
	return image, nil
}

// mountShared makes and mounts the file system whose files can share space, and returns what unmounts it.
func (b *bench) mountShared() (unmount func() error, err error) {
	file := filepath.Join(b.dir, "xfs")
	b.shared = filepath.Join(b.dir, "shared")
	if err := os.Mkdir(b.shared, 0o700); err != nil {
		return nil, err
	}
	if err := run("truncate", "--size", fmt.Sprint(6*b.size+1<<30), file); err != nil {
		return nil, err
	}
	if err := run("mkfs.xfs", "-q", "-m", "reflink=1", file); err != nil {
		return nil, err
	}
	return func() error { return run("umount", b.shared) }, run("mount", "-o", "loop", file, b.shared)
}

// makeRandom makes a file of a size, with random bytes in the first n of each step.
func makeRandom(path string, size, n, step int64) error {
	random, err := os.Open("/dev/urandom")
	if err != nil {
		return err
	}
	defer random.Close()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for off := int64(0); off < size; off += step {
		if _, err := io.Copy(io.NewOffsetWriter(f, off), io.LimitReader(random, n)); err != nil {
			return err
		}
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// makeHugeFile makes a file of 64 TiB that holds nothing, or as large a one as the file system has.
func makeHugeFile(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for size := int64(64 * tib); ; size /= 2 {
		if err := f.Truncate(size - 4096); !errors.Is(err, unix.EFBIG) || size < tib {
			return err
		}
	}
}

// run runs a program, and returns what it says if it fails.
func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}
