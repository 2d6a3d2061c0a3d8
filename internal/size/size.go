// Package size reads and writes numbers of bytes, and writes times, as people do. All messages and tables use it, so that
// one size looks the same wherever it stands.
package size

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

var unitNames = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

// Text returns n bytes rounded to three digits, such as "1.51 GiB". A whole number of a unit is exact.
func Text(n int64) string {
	v, unit := float64(n), 0
	for unit < len(unitNames)-1 && (v >= 999.5 || v <= -999.5) {
		if v < 1024 && v > -1024 && v == float64(int64(v)) {
			break // 1000 to 1023 of a unit, exactly
		}
		v /= 1024
		unit++
	}
	return number(v) + " " + unitNames[unit]
}

// number returns v with at most two digits behind the point and three in all.
func number(v float64) string {
	digits := 2
	switch {
	case v >= 99.95 || v <= -99.95 || v == float64(int64(v)):
		digits = 0
	case v >= 9.995 || v <= -9.995:
		digits = 1
	}
	s := strconv.FormatFloat(v, 'f', digits, 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}

// Exact returns n bytes without rounding: in the largest unit that it is a whole number of, or in bytes.
func Exact(n int64) string {
	unit := 0
	for v := n; unit < len(unitNames)-1 && v != 0 && v%1024 == 0; v /= 1024 {
		n = v / 1024
		unit++
	}
	return strconv.FormatInt(n, 10) + " " + unitNames[unit]
}

// Duration returns d as people say it, such as "8 s", "3 min" or "2 h 5 min".
func Duration(d time.Duration) string {
	s := int64(d.Round(time.Second) / time.Second)
	switch m := (s + 30) / 60; {
	case s < 100:
		return fmt.Sprintf("%d s", s)
	case m < 100:
		return fmt.Sprintf("%d min", m)
	case m%60 == 0:
		return fmt.Sprintf("%d h", m/60)
	default:
		return fmt.Sprintf("%d h %d min", m/60, m%60)
	}
}
