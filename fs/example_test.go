package fs_test

import (
	"fmt"
	"os"

	"github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// Serve the disk of an image as a file below /mnt/disk until that is unmounted. Without an output to compare, the example is
// compiled but not run: a mount needs a privilege.
func ExampleMount() {
	serve := func(path, mountPoint string) error {
		im, err := vhdx.Open(path, vhdx.Options{Writable: true})
		if err != nil {
			return err
		}
		defer im.Close() // after Wait: the server uses the image until then
		s, err := fs.Mount(im, fs.Options{MountPoint: mountPoint, Image: path, DefaultPermissions: true})
		if err != nil {
			return err // which names what to do about it
		}
		fmt.Println("the disk is", s.MountPoint()+"/disk.raw")
		s.Wait()
		return s.DetachDead() // an error if umount -f cut the connection
	}
	if err := serve("/srv/data.vhdx", "/mnt/disk"); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}
