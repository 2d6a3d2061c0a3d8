package draw

import (
	"image/color"

	"github.com/lucasb-eyer/go-colorful"
)

func hex(s string) colorful.Color {
	c, err := colorful.Hex(s)
	if err != nil {
		panic(err) // mistyped below: every use of the package would show it
	}
	return c
}

// Colours of what the disk consists of. They differ in lightness too, for eyes that do not see all hues.
var (
	dataColors = [kinds - Data]colorful.Color{
		hex("#2F6FDE"), hex("#E08A1E"), hex("#1A9E77"), hex("#B04FC0"), hex("#D6456B"), hex("#8A7A66"),
	}
	zeroColor   = hex("#B8C4D6")
	tableColor  = hex("#3A3F4B")
	otherColor  = hex("#8D94A3")
	freeColor   = hex("#ECEFF4") // on paper
	holeColor   = hex("#ECEFF4") // on paper
	inkColor    = hex("#1F2430")
	paleColor   = hex("#667085")
	paperColor  = hex("#FFFFFF")
	gradientMap = []colorful.Color{hex("#6B46C1"), hex("#3B6FC4"), hex("#1F9E96"), hex("#66C25A"), hex("#F2D838")}
)

// paleness is how far the unused rest of a block is blended into the paper.
const paleness = 0.6

func (k Kind) color() colorful.Color {
	switch k {
	case Hole:
		return holeColor
	case Zero:
		return zeroColor
	}
	return dataColors[k-Data]
}

// gradient returns the colour of a place on the disk, from 0, its begin, to 1, its end.
func gradient(at float64) colorful.Color {
	steps := float64(len(gradientMap) - 1)
	at = max(0, min(1, at)) * steps
	i := min(int(at), len(gradientMap)-2)
	return gradientMap[i].BlendLab(gradientMap[i+1], at-float64(i)).Clamped()
}

// fileColor returns the colour of a cell of the file.
func (s *Survey) fileColor(c FileCell) color.Color {
	switch c.Use {
	case InBlock:
		return gradient(float64(c.Disk) / float64(s.Info.DiskSize))
	case InPart:
		return gradient(float64(c.Disk)/float64(s.Info.DiskSize)).BlendLab(paperColor, paleness).Clamped()
	case Tables:
		return tableColor
	case Other:
		return otherColor
	}
	return freeColor
}
