package draw

import (
	"image"
	"image/color"
	stddraw "image/draw"
	"image/png"
	"io"
	"math"

	ximage "golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gobold"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
)

// pngScale is how many pixels of the picture make one of the page, for sharp text.
const pngScale = 2

// bitmap is a canvas of pixels.
type bitmap struct {
	*image.RGBA
	fonts [2]*opentype.Font // regular, bold
	faces map[font]ximage.Face
	err   error
}

// measure is a canvas that keeps nothing: it tells how high a picture is going to be.
type measure struct{}

func (measure) rect(_, _, _, _ float64, _ color.Color, _ string) {}
func (measure) text(_, _ float64, _ font, _ string)              {}

// PNG writes the survey as a picture of pixels.
func PNG(out io.Writer, s *Survey) error {
	height := s.paint(measure{})
	b := &bitmap{RGBA: image.NewRGBA(image.Rect(0, 0, pageWidth*pngScale, int(math.Ceil(height*pngScale)))), faces: map[font]ximage.Face{}}
	for i, ttf := range [][]byte{goregular.TTF, gobold.TTF} {
		var err error
		if b.fonts[i], err = opentype.Parse(ttf); err != nil {
			return err
		}
	}
	stddraw.Draw(b, b.Bounds(), image.NewUniform(paperColor), image.Point{}, stddraw.Src)
	s.paint(b)
	if b.err != nil {
		return b.err
	}
	return png.Encode(out, b.RGBA)
}

func (b *bitmap) rect(x, y, w, h float64, c color.Color, _ string) {
	px := func(v float64) int { return int(math.Round(v * pngScale)) }
	stddraw.Draw(b, image.Rect(px(x), px(y), px(x+w), px(y+h)), image.NewUniform(c), image.Point{}, stddraw.Src)
}

func (b *bitmap) text(x, y float64, f font, s string) {
	face, err := b.face(f)
	if err != nil {
		b.err = err
		return
	}
	d := ximage.Drawer{Dst: b, Src: image.NewUniform(f.color), Face: face}
	at := fixed.Point26_6{X: fixed.Int26_6(x * pngScale * 64), Y: fixed.Int26_6(y * pngScale * 64)}
	if f.end {
		at.X -= d.MeasureString(s)
	}
	d.Dot = at
	d.DrawString(s)
}

// face returns the letters of a font, which are kept.
func (b *bitmap) face(f font) (ximage.Face, error) {
	key := font{size: f.size, bold: f.bold}
	if face := b.faces[key]; face != nil {
		return face, nil
	}
	ttf := b.fonts[0]
	if f.bold {
		ttf = b.fonts[1]
	}
	face, err := opentype.NewFace(ttf, &opentype.FaceOptions{Size: f.size * pngScale, DPI: 72, Hinting: ximage.HintingFull})
	b.faces[key] = face
	return face, err
}
