package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// What becomes of a mutant.
const (
	noticed   = "noticed"
	hangs     = "hangs"
	survived  = "SURVIVED"
	unreached = "UNREACHED" // no test reaches its line
	invalid   = "invalid"   // it does not compile
)

// results keeps what became of each mutant, in a file if there is one, so that a run can continue after an interruption.
type results struct {
	of    map[string]string // by mutant.key
	tally map[string]int    // of this run
	file  *os.File
}

// A line of the file of results.
type line struct {
	Mutant, Place, Result string
	By                    string `json:",omitempty"` // the test that noticed it
}

func openResults(path string) (*results, error) {
	r := &results{of: map[string]string{}, tally: map[string]int{}}
	if path == "" {
		return r, nil
	}
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		defer f.Close()
		s := bufio.NewScanner(f)
		for s.Scan() {
			var l line
			if err := json.Unmarshal(s.Bytes(), &l); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			r.of[l.Mutant] = l.Result // the last one counts
		}
		if err := s.Err(); err != nil {
			return nil, err
		}
	}
	r.file, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	return r, err
}

func (r *results) close() {
	if r.file != nil {
		r.file.Close()
	}
}

func (r *results) add(m *mutant, result, by string) error {
	r.tally[result]++
	fmt.Printf("%-10s %v\n", result, m)
	if r.file == nil {
		return nil
	}
	b, err := json.Marshal(line{Mutant: m.key(), Place: fmt.Sprintf("%s/%s:%d", m.dir, m.file, m.line), Result: result, By: by})
	if err != nil {
		return err
	}
	_, err = r.file.Write(append(b, '\n'))
	return err
}
