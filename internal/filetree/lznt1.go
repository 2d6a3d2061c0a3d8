package filetree

// decompress writes a compressed attribute. Each unit of it is stored as it is, or compressed in fewer clusters and then a
// hole, or is a hole alone.
func (n *ntfsFS) decompress(a *ntfsAttr, w *writer) error {
	const maxUnit = 1 << 20
	if a.unit == 0 || a.unit*n.cluster > maxUnit {
		return cannotRead("it is compressed in units of %d clusters", a.unit)
	}
	size := a.unit * n.cluster
	var stored []byte
	var have, data int64 // clusters of the unit, and those that are stored
	flush := func() error {
		defer func() { stored, have, data = stored[:0], 0, 0 }()
		switch {
		case data == 0:
			return w.zeros(size)
		case data == a.unit:
			return w.bytes(stored)
		}
		b, err := lznt1(stored, int(size))
		if err != nil {
			return err
		}
		return w.bytes(b)
	}
	for _, r := range a.runs {
		for left, at := r.n, r.at; left > 0 && w.left > 0; {
			if r.sparse && have == 0 && left >= a.unit { // holes may be huge
				units := left / a.unit
				if err := w.zeros(min(units, w.left/size+1) * size); err != nil {
					return err
				}
				left -= units * a.unit
				continue
			}
			k := min(left, a.unit-have)
			if !r.sparse {
				p, err := n.v.at(at*n.cluster, int(k*n.cluster))
				if err != nil {
					return err
				}
				stored = append(stored, p...)
				data += k
			}
			have, left, at = have+k, left-k, at+k
			if have == a.unit {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	if have > 0 && w.left > 0 {
		return flush()
	}
	return nil
}

// lznt1 decompresses a unit, in chunks of 4 KiB (MS-XCA 2.5), and fills up with zeros to the size.
func lznt1(b []byte, size int) ([]byte, error) {
	const chunk = 4096
	out := make([]byte, 0, size)
	for len(b) >= 2 && len(out) < size {
		head := int(le.Uint16(b))
		if head == 0 {
			break
		}
		n := head&0xFFF + 1
		if b = b[2:]; n > len(b) {
			return nil, damaged("a compressed chunk")
		}
		c := b[:n]
		b = b[n:]
		start := len(out)
		if head&0x8000 == 0 {
			out = append(out, c...)
		} else {
			for len(c) > 0 && len(out)-start < chunk {
				flags := c[0]
				c = c[1:]
				for bit := 0; bit < 8 && len(c) > 0 && len(out)-start < chunk; bit++ {
					if flags>>bit&1 == 0 {
						out, c = append(out, c[0]), c[1:]
						continue
					}
					if len(c) < 2 {
						return nil, damaged("a compressed chunk")
					}
					pair := int(le.Uint16(c))
					c = c[2:]
					shift := 12
					for p := len(out) - start - 1; p >= 16; p >>= 1 {
						shift--
					}
					back, length := pair>>shift+1, pair&(1<<shift-1)+3
					if back > len(out)-start || len(out)-start+length > chunk {
						return nil, damaged("a compressed chunk")
					}
					for range length {
						out = append(out, out[len(out)-back])
					}
				}
			}
		}
		// A chunk stands for 4 KiB, whatever it holds.
		if short := start + chunk - len(out); short > 0 && len(b) >= 2 && le.Uint16(b) != 0 {
			out = append(out, make([]byte, short)...)
		}
	}
	return append(out, make([]byte, max(size-len(out), 0))...)[:size], nil
}
