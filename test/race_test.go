//go:build race

package test

// raceFlags builds the program like the tests themselves.
var raceFlags = []string{"-race"}
