package cli

import (
	"path/filepath"
	"slices"
	"strings"
)

// foreignExtensions are the ends of names that say of a file that it is of a format which this program does not write.
var foreignExtensions = []string{
	"vhd", "avhd", "vhds", "qcow", "qcow2", "qed", "vmdk", "vdi", "hdd", "dmg", "ova", "ovf", "e01", "wim",
	"gz", "xz", "zst", "bz2", "lz4", "zip", "7z", "rar", "tar",
}

// extension returns the end of a name, in lower case and without its dot.
func extension(path string) string {
	return strings.ToLower(strings.TrimPrefix(filepath.Ext(path), "."))
}

// isImageName reports whether the name at path is one of an image.
func isImageName(path string) bool { return slices.Contains(imageExtensions, extension(path)) }

// checkImageName refuses a name for a new image that says it is something else.
func checkImageName(path string) error {
	ext := extension(path)
	if ext == "raw" || slices.Contains(foreignExtensions, ext) {
		return usageError("%s: the new file is a VHDX image, and its name says .%s; give it a name that ends in .vhdx", path, ext)
	}
	return nil
}

// checkRawName refuses a name for a raw disk that says it is something else. Where that is meant, -O raw says so.
func checkRawName(path string) error {
	if ext := extension(path); slices.Contains(foreignExtensions, ext) {
		return usageError("%s: vhdxfs writes VHDX images and raw disks, no .%s; give -O raw if you mean a raw disk of that name, or convert to disk.raw and "+
			"that one with qemu-img convert", path, ext)
	}
	return nil
}
