package mounts

import (
	"encoding/json"
	"fmt"
)

// A Job is how far work is that a mount does in the background, or that was the last of its kind. Its result is an R.
type Job[R any] struct {
	ID      string `json:"id,omitempty"` // by which the work is known, if it was asked for with one
	Running bool   `json:"running"`
	Phase   string `json:"phase,omitempty"`
	Done    int64  `json:"done_bytes"`             // of the phase
	Total   int64  `json:"total_bytes"`            // as far as is known
	Shared  int64  `json:"shared_bytes,omitempty"` // of those that are done
	Result  *R     `json:"result,omitempty"`
	Error   string `json:"error,omitempty"`   // why it ended early
	Refused bool   `json:"refused,omitempty"` // because of what was asked for, or for want of permission
}

// askState reads the attribute in which a mount tells of its work in JSON.
func askState[T any](mountPoint, name string) (*T, error) {
	text, err := Attribute(mountPoint, name)
	if err != nil {
		return nil, err
	}
	state := new(T)
	if err := json.Unmarshal([]byte(text), state); err != nil {
		return nil, fmt.Errorf("unexpected answer of the mount on %s: %w", mountPoint, err)
	}
	return state, nil
}

// tellRequest sets that attribute to a request in JSON.
func tellRequest(mountPoint, name string, request any) error {
	b, err := json.Marshal(request)
	if err != nil {
		return err
	}
	return tell(mountPoint, name, b)
}
