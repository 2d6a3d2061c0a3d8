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
		if ext == "vhd" {
			return usageError("%s: only convert writes a .vhd file; give the new image a name that ends in .vhdx", path)
		}
		return usageError("%s: cannot write a .%s file; give the new image a name that ends in .vhdx", path, ext)
	}
	return nil
}

// checkRawName refuses a name for a raw disk that says it is something else. Where that is meant, -O raw says so.
func checkRawName(path string) error {
	if ext := extension(path); slices.Contains(foreignExtensions, ext) {
		return usageError("%s: cannot write a .%s file; convert to a raw disk, such as disk.raw, then convert that with qemu-img convert. "+
			"-O raw writes a raw disk under this name", path, ext)
	}
	return nil
}
