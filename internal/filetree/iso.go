package filetree

import (
	"bytes"
	"io/fs"
	"strings"
	"time"
	"unicode/utf16"
)

const isoSector = 2048 // bytes

// isoFS is ISO 9660 with the names of Rock Ridge, or of Joliet, or its own (ECMA-119, IEEE P1282).
type isoFS struct {
	v      volume
	block  int64 // bytes
	root   []byte
	joliet bool
	rock   bool
	skip   int // bytes before the fields of Rock Ridge
}

// An isoFile is where the parts of a file are.
type isoFile struct {
	parts []isoPart
	link  string
}

type isoPart struct{ at, n int64 } // bytes

func openISO(v volume) (Tree, error) {
	const first, primary, supplementary, end, maxDescriptors = 16, 1, 2, 255, 64
	i := &isoFS{v: v}
	for n := int64(first); n < first+maxDescriptors; n++ {
		b, err := v.at(n*isoSector, isoSector)
		if err != nil || string(b[1:6]) != "CD001" || b[0] == end {
			break
		}
		switch escape := string(b[88:91]); {
		case b[0] == primary && i.root == nil:
			i.block, i.root = int64(le.Uint16(b[128:])), b[156:190]
			i.findRock()
		case b[0] == supplementary && !i.rock && (escape == "%/@" || escape == "%/C" || escape == "%/E"):
			i.root, i.joliet = b[156:190], true
		}
	}
	if i.root == nil || i.block < 512 || i.block > isoSector {
		return nil, damaged("no volume descriptor of ISO 9660")
	}
	return i, nil
}

// findRock looks whether the root directory has the fields of Rock Ridge, which begin with one of SUSP.
func (i *isoFS) findRock() {
	b, err := i.v.at(int64(le.Uint32(i.root[2:]))*i.block, isoSector)
	if err != nil || int(b[0]) < 34+7 || int(b[0]) > len(b) {
		return
	}
	if f := b[34:b[0]]; string(f[:2]) == "SP" && f[4] == 0xBE && f[5] == 0xEF {
		i.rock, i.skip = true, int(f[6])
	}
}

func (i *isoFS) NoCase() bool { return !i.rock }

func (i *isoFS) Note() string { return "" }

func (i *isoFS) Root() (*File, error) {
	f := i.file(i.root)
	f.Name, f.Mode = "", plainDir
	return f, nil
}

// file returns the file of a directory record.
func (i *isoFS) file(r []byte) *File {
	const directory = 2
	part := isoPart{int64(le.Uint32(r[2:])) * i.block, int64(le.Uint32(r[10:]))}
	f := &File{Mode: plainFile, Size: part.n, id: uint64(part.at), data: &isoFile{parts: []isoPart{part}}} // #nosec G115 -- not negative
	d := r[18:25]
	f.ModTime = time.Date(1900+int(d[0]), time.Month(d[1]), int(d[2]), int(d[3]), int(d[4])-15*int(int8(d[6])), int(d[5]), 0, time.UTC) // #nosec G115 -- the sign
	if r[25]&directory != 0 {
		f.Mode = plainDir
	}
	n := min(int(r[32]), len(r)-33)
	f.Name = i.name(r[33 : 33+n])
	return f
}

// name decodes the name of a directory record, without the version.
func (i *isoFS) name(b []byte) string {
	s := string(b)
	if i.joliet {
		var units []uint16
		for ; len(b) >= 2; b = b[2:] {
			units = append(units, be.Uint16(b))
		}
		s = string(utf16.Decode(units))
	}
	s, _, _ = strings.Cut(s, ";")
	return strings.TrimSuffix(s, ".")
}

func (i *isoFS) List(dir *File, each func(*File) error) error {
	var all whole
	if err := i.Read(dir, &all); err != nil {
		return err
	}
	const more = 0x80
	var parts *File // of a file with more to come
	for b := all.b; len(b) > 0; {
		n := int(b[0])
		if n == 0 { // records do not cross sectors
			b = b[min(len(b), isoSector-(len(all.b)-len(b))%isoSector):]
			continue
		}
		if n < 34 || n > len(b) || 33+int(b[32]) > n {
			return damaged("a record of a directory")
		}
		r := b[:n]
		b = b[n:]
		if r[32] == 1 && r[33] <= 1 { // itself and its parent
			continue
		}
		f := i.file(r)
		if i.rock {
			skip, err := i.ridge(f, r)
			if err != nil {
				return err
			}
			if skip {
				continue
			}
		}
		if parts != nil {
			d := parts.data.(*isoFile)
			d.parts = append(d.parts, f.data.(*isoFile).parts...)
			parts.Size += f.Size
			f = parts
		}
		if parts = nil; r[25]&more != 0 {
			parts = f
			continue
		}
		if err := each(f); err != nil {
			return err
		}
	}
	return nil
}

// ridge adds what Rock Ridge says of a file. It reports whether the record is none of a file, but of a place from which a
// directory was moved.
func (i *isoFS) ridge(f *File, r []byte) (skip bool, err error) {
	start := 33 + int(r[32])
	start += start%2 + i.skip
	if start > len(r) {
		return false, nil
	}
	fields := r[start:]
	var name, link strings.Builder
	const maxContinuations = 32
	for range maxContinuations {
		var next []byte
		for len(fields) >= 4 {
			n := int(fields[2])
			if n < 4 || n > len(fields) {
				break
			}
			b := fields[:n]
			fields = fields[n:]
			switch kind := string(b[:2]); {
			case kind == "NM" && n > 5:
				name.Write(b[5:])
			case kind == "PX" && n >= 12:
				f.Mode = unixMode(uint16(le.Uint32(b[4:]))) // #nosec G115 -- 16 bits of mode
			case kind == "SL" && n > 5:
				addLink(&link, b[5:])
			case kind == "RE":
				skip = true
			case kind == "CL" && n >= 8: // a directory that was moved, since it was too deep
				at := int64(le.Uint32(b[4:])) * i.block
				head, err := i.v.at(at, isoSector)
				if err != nil {
					return false, err
				}
				moved := i.file(head[:max(34, min(int(head[0]), len(head)))])
				f.Mode, f.Size, f.id, f.data = fs.ModeDir|f.Mode.Perm(), moved.Size, moved.id, moved.data
			case kind == "CE" && n >= 28:
				at, off, size := int64(le.Uint32(b[4:]))*i.block, int64(le.Uint32(b[12:])), int(le.Uint32(b[20:]))
				if size > isoSector {
					return false, damaged("fields of Rock Ridge of %d bytes", size)
				}
				if next, err = i.v.at(at+off, size); err != nil {
					return false, err
				}
			}
		}
		if fields = next; fields == nil {
			break
		}
	}
	if name.Len() > 0 {
		f.Name = name.String()
	}
	if link.Len() > 0 {
		f.data.(*isoFile).link = link.String()
		f.Size = int64(link.Len())
	}
	return skip, nil
}

// addLink adds the components of a symbolic link.
func addLink(to *strings.Builder, b []byte) {
	const continues, here, parent, root = 1, 2, 4, 8
	for len(b) >= 2 && 2+int(b[1]) <= len(b) {
		flags, text := b[0], string(b[2:2+int(b[1])])
		if s := to.String(); s != "" && !strings.HasSuffix(s, "/") && !strings.HasSuffix(s, "\x00") {
			to.WriteByte('/')
		}
		joined := strings.TrimSuffix(to.String(), "\x00")
		to.Reset()
		to.WriteString(joined)
		switch {
		case flags&root != 0:
			to.WriteByte('/')
		case flags&parent != 0:
			to.WriteString("..")
		case flags&here != 0:
			to.WriteByte('.')
		default:
			to.WriteString(text)
			if flags&continues != 0 {
				to.WriteByte(0) // the next one goes on here
			}
		}
		b = b[2+int(b[1]):]
	}
}

func (i *isoFS) Read(f *File, to Sink) error {
	w := i.v.writer(to, f.Size)
	for _, p := range f.data.(*isoFile).parts {
		if err := w.extent(p.at, p.n); err != nil {
			return err
		}
	}
	return nil
}

func (i *isoFS) Link(f *File) (string, error) {
	return string(bytes.Trim([]byte(f.data.(*isoFile).link), "\x00")), nil
}
