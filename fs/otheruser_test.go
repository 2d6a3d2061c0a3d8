package fs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/vhdxfs/vhdxfs/internal/otheruser"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// The name of another user's image leads to one of root's at every other moment. Whichever is opened, disk.raw has the
// owner and the permissions of that one.
func TestAttributesOfExchangedImages(t *testing.T) {
	dir, secret := otheruser.Dir(t), filepath.Join(t.TempDir(), "secret.vhdx")
	theirs, link := filepath.Join(dir, "image.vhdx"), filepath.Join(dir, "link")
	const ours, public = 4 << 20, 8 << 20 // the sizes by which the disks are told apart
	err := errors.Join(vhdx.Create(secret, vhdx.CreateOptions{Size: ours}), vhdx.Create(theirs, vhdx.CreateOptions{Size: public}), os.Chmod(secret, 0o600),
		os.Chmod(theirs, 0o666), os.Chown(theirs, otheruser.UID, otheruser.UID), os.Symlink(secret, link), os.Lchown(link, otheruser.UID, otheruser.UID))
	if err != nil {
		t.Fatal(err)
	}
	otheruser.Exchange(t, theirs, link)
	opened := map[int64]int{}
	for range 300 {
		im, err := vhdx.Open(theirs, vhdx.Options{})
		if err != nil {
			continue // it was no link when it was a link, say
		}
		a, err := (&Options{Image: theirs, AllowOther: true}).statImage(im)
		if err != nil {
			t.Error(err)
		}
		opened[im.Size()]++
		if im.Size() == ours && (a.uid != 0 || a.perm&0o066 != 0) {
			t.Fatalf("the disk of root is shown with owner %d and permissions %o", a.uid, a.perm)
		}
		im.Close()
	}
	if opened[ours] == 0 || opened[public] == 0 {
		t.Errorf("opened, by size: %v", opened)
	}
}
