package draw

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"image/color"
	"io"
	"math"
	"strconv"
)

// svg is a canvas that becomes a text of shapes. Rectangles that follow each other with one colour and one hint
// become one path.
type svg struct {
	body bytes.Buffer
	fill string
	hint string
	path bytes.Buffer
}

// SVG writes the survey as a scalable picture.
func SVG(out io.Writer, s *Survey) error {
	c := &svg{}
	height := s.paint(c)
	c.flush()
	_, err := fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" width="%g" height="%g" viewBox="0 0 %[1]g %[2]g"
  font-family="Inter, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif" shape-rendering="crispEdges">
<title>%s</title>
<rect width="100%%" height="100%%" fill="%s"/>
%s</svg>
`, pageWidth, height, escape(s.title()+": "+s.facts()), hexOf(paperColor), c.body.Bytes())
	return err
}

func (c *svg) rect(x, y, w, h float64, fill color.Color, hint string) {
	if f := hexOf(fill); f != c.fill || hint != c.hint {
		c.flush()
		c.fill, c.hint = f, hint
	}
	fmt.Fprintf(&c.path, "M%s %sh%sv%sh-%[3]sz", number(x), number(y), number(w), number(h))
}

// flush ends the path.
func (c *svg) flush() {
	if c.path.Len() == 0 {
		return
	}
	fmt.Fprintf(&c.body, `<path fill="%s" d="%s"`, c.fill, c.path.Bytes())
	if c.hint == "" {
		c.body.WriteString("/>\n")
	} else {
		fmt.Fprintf(&c.body, "><title>%s</title></path>\n", escape(c.hint))
	}
	c.path.Reset()
}

func (c *svg) text(x, y float64, f font, s string) {
	c.flush()
	weight, anchor := "", ""
	if f.bold {
		weight = ` font-weight="600"`
	}
	if f.end {
		anchor = ` text-anchor="end"`
	}
	fmt.Fprintf(&c.body, `<text x="%s" y="%s" font-size="%g"%s%s fill="%s">%s</text>`+"\n", number(x), number(y), f.size, weight, anchor, hexOf(f.color), escape(s))
}

// number writes a number with two digits behind the point at the most.
func number(v float64) string { return strconv.FormatFloat(math.Round(v*100)/100, 'f', -1, 64) }

// escape makes a text, which may be the name of a file, harmless in XML.
func escape(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // a buffer takes everything
	return b.String()
}

func hexOf(c color.Color) string {
	r, g, b, _ := c.RGBA()
	return fmt.Sprintf("#%02x%02x%02x", r>>8, g>>8, b>>8)
}
