// Package utf16text decodes the UTF-16 of names and labels in headers and directories of others, for people to read.
package utf16text

import (
	"encoding/binary"
	"unicode/utf16"
)

// UpToZero decodes b up to its end or to the first zero. What is no UTF-16 becomes U+FFFD, and an odd byte at the end is left
// out.
func UpToZero(b []byte, order binary.ByteOrder) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := order.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}
