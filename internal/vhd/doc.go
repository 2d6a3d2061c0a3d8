// Package vhd reads the images that VHDX has replaced, and writes them from their first byte to their last: fixed,
// dynamic and, to read, differencing ones ("Virtual Hard Disk Image Format Specification", Microsoft, 2006).
//
//	fixed         | disk ... | footer |
//	dynamic       | copy of the footer | dynamic disk header | BAT | block | block | ... | footer |
//	block         | sector bitmap, a bit for each sector | sectors |
//
// All numbers are big-endian, places are counted in sectors of 512 bytes, and a BAT entry of 32 bits is the place of a
// block. In a differencing image the bits of the bitmap that are 0 leave a sector to the parent. In a dynamic one they say
// that nothing was written to a sector yet, but programs disagree on whether to believe them, so they are not looked at:
// QEMU does the same.
//
// An Image answers the same questions as one of package vhdx, and shares its extents, locks, and options as far as they
// are about reading.
package vhd
