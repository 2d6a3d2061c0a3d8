//go:build race

package fs

func init() { raceDetector = true }
