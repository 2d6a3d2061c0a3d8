package test
var remountRows, umountRows, badRows, userRows, processRows []row
func optionRows() []row { return nil }
