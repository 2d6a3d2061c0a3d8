package vhdx_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// inDir calls do with a new directory, which goes afterwards.
func inDir(do func(dir string) error) {
	dir, err := os.MkdirTemp("", "example")
	if err == nil {
		defer os.RemoveAll(dir)
		err = do(dir)
	}
	if err != nil {
		fmt.Println(err)
	}
}

// Open an image for writing, write, and read it back. What Sync has returned for survives a power cut.
func ExampleOpen() {
	inDir(func(dir string) error {
		path := filepath.Join(dir, "disk.vhdx")
		if err := vhdx.Create(path, vhdx.CreateOptions{Size: 1 << 30}); err != nil {
			return err
		}
		im, err := vhdx.Open(path, vhdx.Options{Writable: true})
		if err != nil {
			return err
		}
		defer im.Close()
		if _, err := im.WriteAt([]byte("hello"), 1<<20); err != nil {
			return err
		}
		if err := im.Sync(); err != nil {
			return err
		}
		b := make([]byte, 8)
		if _, err := im.ReadAt(b, 1<<20); err != nil {
			return err
		}
		fmt.Printf("%d bytes of disk: %q\n", im.Size(), b)
		return nil
	})
	// Output: 1073741824 bytes of disk: "hello\x00\x00\x00"
}

// A new dynamic disk takes little space, whatever its size.
func ExampleCreate() {
	inDir(func(dir string) error {
		path := filepath.Join(dir, "disk.vhdx")
		if err := vhdx.Create(path, vhdx.CreateOptions{Size: 64 << 40, BlockSize: 32 << 20}); err != nil {
			return err
		}
		im, err := vhdx.Open(path, vhdx.Options{})
		if err != nil {
			return err
		}
		defer im.Close()
		fmt.Printf("%s disk of %d TiB, %d bytes of it in the file\n", im.Type(), im.Size()>>40, im.AllocatedBytes())
		return nil
	})
	// Output: dynamic disk of 64 TiB, 0 bytes of it in the file
}

// A snapshot freezes an image that is not in use. The disk goes on in a child, which reads as before.
func ExampleSnapshot() {
	inDir(func(dir string) error {
		path := filepath.Join(dir, "disk.vhdx")
		if err := vhdx.Create(path, vhdx.CreateOptions{Size: 1 << 30}); err != nil {
			return err
		}
		r, err := vhdx.Snapshot(context.Background(), path, filepath.Join(dir, "today.avhdx"), vhdx.SnapshotOptions{})
		if err != nil {
			return err
		}
		child, err := vhdx.Open(r.Child, vhdx.Options{Writable: true})
		if err != nil {
			return err
		}
		defer child.Close()
		if _, err := child.WriteAt([]byte("new"), 0); err != nil {
			return err
		}
		parent, err := vhdx.Open(r.Frozen, vhdx.Options{}) // both have it open for reading
		if err != nil {
			return err
		}
		defer parent.Close()
		b := make([]byte, 3)
		for _, im := range []*vhdx.Image{child, parent} {
			if _, err := im.ReadAt(b, 0); err != nil {
				return err
			}
			fmt.Printf("%s: %s, %q\n", filepath.Base(im.Path()), im.Type(), b)
		}
		return nil
	})
	// Output:
	// today.avhdx: differencing, "new"
	// disk.vhdx: dynamic, "\x00\x00\x00"
}
