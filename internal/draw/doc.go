// Package draw paints an image: the disk, as which file of the chain holds what of it, and below it the image's own
// file, as which part of the disk is where. Survey gathers what is to be seen in cells; Terminal, SVG and PNG show it.
//
// In the second picture each colour stands for a place on the disk. A file that is in order is a smooth gradient, one
// in pieces is speckled.
package draw
