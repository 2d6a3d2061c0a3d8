package test

import (
	"path/filepath"
	"strings"
	"testing"
)

// A machine with udev, the rule of the packages and udisks, as a desktop has them, shows an attached disk with its model and serial
// number, and mounts its partitions.
func TestSystemdMachineWithUdisks(t *testing.T) {
	directory := requireVM(t, "desktop", "attr", "udisks2")
	srv := newDir(t)
	img := filepath.Join(srv, "parts.vhdx")
	imageWithPartitions(t, img)
	id := info(t, img).DiskID
	m := newMachine(t, directory, srv)
	m.edit(t, m.root, func(root string) {
		must(t, "cp", "../packaging/udev/60-vhdxfs.rules", filepath.Join(root, "etc/udev/rules.d"))
		writeText(t, filepath.Join(root, "etc/fstab"), "LABEL=srv /srv ext4 defaults 0 2\n")
	})
	b := m.boot(t, "")
	dev, _, _ := strings.Cut(b.must(t, "vhdxfs attach /srv/parts.vhdx 2>/dev/null"), "\n")
	b.must(t, "udevadm settle")
	b.want(t, "lsblk --nodeps --noheadings --output MODEL,SERIAL "+dev+" | tr -s ' '", "VHDX "+id)
	for name, want := range map[string]string{"ID_MODEL": "VHDX", "ID_SERIAL_SHORT": id} {
		for _, d := range []string{dev, dev + "p2"} {
			b.want(t, "udevadm info --query=property --property="+name+" --value "+d, want)
		}
	}
	// To udisks, a loop device has no drive, but a file.
	if text := b.must(t, "udisksctl info --block-device "+dev); !strings.Contains(text, "/run/vhdxfs/parts/disk.raw") || !strings.Contains(text, "loop0p2") {
		t.Errorf("udisks shows of the disk\n%s", text)
	}
	if text := b.must(t, "udisksctl info --block-device "+dev+"p2"); !strings.Contains(text, "IdLabel:                    second\n") {
		t.Errorf("udisks shows of the partition\n%s", text)
	}
	b.must(t, "udisksctl mount --no-user-interaction --block-device "+dev+"p2")
	if text := b.must(t, "vhdxfs detach /srv/parts.vhdx 2>&1; true"); !strings.Contains(text, "is mounted at /media/root/second") && !strings.Contains(text, "is mounted at /run/media/root/second") {
		t.Errorf("detach while udisks has mounted the partition: %s", text)
	}
	b.must(t, "udisksctl unmount --no-user-interaction --block-device "+dev+"p2")
	b.must(t, "vhdxfs detach /srv/parts.vhdx")
	b.off(t, "systemctl poweroff --no-block")
	m.check(t, "parts.vhdx")
}
