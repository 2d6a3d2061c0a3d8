package test

var processRows []row

func optionRows() []row { return nil }
