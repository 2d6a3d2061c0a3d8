package main

import (
	"bytes"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"time"
)

// A table holds all measurements.
type table struct {
	rows []*row
}

type row struct {
	workload workload
	rounds   map[string][]measurement // by the contestant's name
}

func (t *table) add(w workload, c contestant, m measurement) {
	i := slices.IndexFunc(t.rows, func(r *row) bool { return r.workload.name == w.name })
	if i < 0 {
		t.rows = append(t.rows, &row{w, map[string][]measurement{}})
		i = len(t.rows) - 1
	}
	t.rows[i].rounds[c.name] = append(t.rows[i].rounds[c.name], m)
}

// ratio returns how many times as fast a contestant is as another one: the median over the rounds. It is 0 where the other
// one has not taken part.
func (r *row) ratio(name, base string) float64 {
	var ratios []float64
	if len(r.rounds[base]) == 0 {
		return 0
	}
	for i, m := range r.rounds[name] {
		ratios = append(ratios, m.rate/r.rounds[base][i].rate)
	}
	return median(ratios)
}

// cpu returns the server's processor time for one request, the median over the rounds.
func (r *row) cpu(name string) time.Duration {
	var times []time.Duration
	if len(r.rounds[name]) == 0 {
		return 0
	}
	for _, m := range r.rounds[name] {
		times = append(times, m.cpu)
	}
	return median(times)
}

func median[T float64 | time.Duration](v []T) T {
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// print writes the table in Markdown: ratios to the first contestant's peers, and processor time.
func (t *table) print(w io.Writer, contestants []contestant) {
	us := contestants[0].name
	fmt.Fprint(w, "| workload |")
	for _, c := range contestants[1:] {
		fmt.Fprintf(w, " x %s |", c.name)
	}
	fmt.Fprintf(w, " aim: qemu, go-fuse | µs per request: %s", us)
	for _, c := range contestants[1:] {
		if c.format == "vhdx" {
			fmt.Fprintf(w, ", %s", c.name)
		}
	}
	fmt.Fprint(w, " |\n|---|")
	for range len(contestants) + 1 {
		fmt.Fprint(w, "---|")
	}
	for _, r := range t.rows {
		fmt.Fprintf(w, "\n| %s |", r.workload.name)
		for _, c := range contestants[1:] {
			if ratio := r.ratio(us, c.name); ratio > 0 {
				fmt.Fprintf(w, " %.2f |", ratio)
			} else {
				fmt.Fprint(w, " – |")
			}
		}
		fmt.Fprintf(w, " %s, %s | %d", orDash(r.workload.aim.qemu), orDash(r.workload.aim.goFUSE), r.cpu(us).Microseconds())
		for _, c := range contestants[1:] {
			if c.format == "vhdx" {
				fmt.Fprintf(w, ", %d", r.cpu(c.name).Microseconds())
			}
		}
		fmt.Fprint(w, " |")
	}
	fmt.Fprintln(w)
}

func orDash(v float64) string {
	if v == 0 {
		return "–"
	}
	return fmt.Sprint(v)
}

// svg draws the ratios as bars on a scale in which twice and half as fast are equally far from 1.
func (t *table) svg(contestants []contestant) []byte {
	const (
		left, width, line = 210, 420, 22 // pixels
		span              = 5.0          // powers of two to each side of 1
	)
	type bar struct {
		Y, X, Width int
		Text, Fill  string
	}
	type rowOf struct {
		Y    int
		Name string
		Bars []bar
	}
	at := func(ratio float64) int {
		return left + int((min(max(math.Log2(ratio), -span), span)+span)/(2*span)*width)
	}
	fills := []string{"#3b6ea5", "#e0a030", "#b0b7c3"}
	var data struct {
		Width, Height, One int
		Rows               []rowOf
		Legend             []bar
		Ticks              []bar
	}
	data.Width, data.One = left+width+60, at(1)
	y := 50
	for i, c := range contestants[1:] {
		data.Legend = append(data.Legend, bar{Y: 14, X: 40 + i*220, Text: "times as fast as " + c.name, Fill: fills[i%len(fills)]})
	}
	for _, r := range t.rows {
		out := rowOf{Y: y + line*(len(contestants)-1)/2, Name: r.workload.name}
		for i, c := range contestants[1:] {
			ratio := r.ratio(contestants[0].name, c.name)
			if ratio == 0 {
				continue
			}
			x := min(at(ratio), data.One)
			out.Bars = append(out.Bars, bar{Y: y + i*line*3/4, X: x, Width: max(at(ratio), data.One) - x, Text: fmt.Sprintf("%.2g", ratio), Fill: fills[i%len(fills)]})
		}
		data.Rows = append(data.Rows, out)
		y += line*(len(contestants)-1)*3/4 + 10
	}
	for _, tick := range []float64{1. / 16, 1. / 4, 1, 4, 16} {
		data.Ticks = append(data.Ticks, bar{X: at(tick), Y: y, Text: fmt.Sprintf("%.3g", tick)})
	}
	data.Height = y + 24
	var b bytes.Buffer
	if err := picture.Execute(&b, data); err != nil {
		panic(err) // the template and the data are both of this file
	}
	return b.Bytes()
}

var picture = template.Must(template.New("svg").Parse(`<svg xmlns="http://www.w3.org/2000/svg" width="{{.Width}}" height="{{.Height}}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
{{range .Legend}}<rect x="{{.X}}" y="{{.Y}}" width="12" height="12" fill="{{.Fill}}"/><text x="{{.X}}" y="{{.Y}}" dx="18" dy="10">{{.Text}}</text>
{{end}}{{$height := .Height}}{{range .Ticks}}<line x1="{{.X}}" y1="40" x2="{{.X}}" y2="{{.Y}}" stroke="#dddddd"/><text x="{{.X}}" y="{{.Y}}" dy="14" text-anchor="middle" fill="#666666">{{.Text}}</text>
{{end}}{{range .Rows}}<text x="200" y="{{.Y}}" text-anchor="end">{{.Name}}</text>
{{range .Bars}}<rect x="{{.X}}" y="{{.Y}}" width="{{.Width}}" height="13" fill="{{.Fill}}"/><text x="{{.X}}" y="{{.Y}}" dx="{{.Width}}" dy="11" font-size="10">&#160;{{.Text}}</text>
{{end}}{{end}}<line x1="{{.One}}" y1="40" x2="{{.One}}" y2="{{.Height}}" stroke="#333333"/>
</svg>
`))
