package test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The setup of each shell that is driven by a terminal: with the script at SCRIPT it completes as users have it, and
// Control-X twice shows the line and empties it.
var shellSetup = map[string]struct{ file, text, command string }{
	"bash": {"bashrc", `source /usr/share/bash-completion/bash_completion
source SCRIPT
PS1=
bind 'set enable-bracketed-paste off'
show() { printf '\n<<%s>>\n' "$READLINE_LINE"; READLINE_LINE= READLINE_POINT=0; }
bind -x '"\C-x\C-x": show'
`, "bash --rcfile bashrc -i"},
	"zsh": {".zshrc", `fpath=($PWD $fpath)
autoload -Uz compinit && compinit -u -d dump
PS1=
show() { print -r -- "<<$BUFFER>>"; BUFFER=; }
zle -N show
bindkey '^X^X' show
`, "zsh -i"},
}

// typeTo completes each line in a shell by the Tab key, and returns what the lines have become.
func typeTo(t *testing.T, shell, dir string, lines []string) (completed []string) {
	t.Helper()
	requireTools(t, "script", shell)
	setup := shellSetup[shell]
	script := filepath.Join(dir, "_vhdxfs") // as zsh wants it
	for name, text := range map[string]string{
		script:                         mustVhdxfs(t, "completion", shell),
		filepath.Join(dir, setup.file): strings.ReplaceAll(setup.text, "SCRIPT", script),
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte(strings.Join(lines, "\t\x18\x18")+"\t\x18\x18exit\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out := must(t, "sh", "-c", `cd "$1" && PATH=$2:$PATH ZDOTDIR=$1 HOME=$1 TERM=dumb timeout 60 script --quiet --flush --return --command "$3" /dev/null <"$4"`,
		"sh", dir, filepath.Dir(program.path(t)), setup.command, keys)
	for rest := out; ; {
		_, after, ok := strings.Cut(rest, "<<")
		line, after, closed := strings.Cut(after, ">>")
		if !ok || !closed {
			break
		}
		completed, rest = append(completed, strings.TrimSuffix(line, " ")), after
	}
	if len(completed) != len(lines) {
		t.Fatalf("%s has shown %d lines, want %d:\n%s", shell, len(completed), len(lines), out)
	}
	return completed
}

// Commands, flags, options behind a comma and their values, images and directories are completed.
func TestShellCompletion(t *testing.T) {
	cases := []struct{ typed, word, want string }{ // word is the last, and becomes want
		{"vhdxfs ", "compac", "compact"},
		{"vhdxfs ", "da", "data.vhdx"},
		{"vhdxfs data.vhdx ", "mn", "mnt/"},
		{"vhdxfs -o ", "comm", "commit="},
		{"vhdxfs -o ", "lock=t", "lock=try"},
		{"vhdxfs -o ", "ro,par", "ro,par"}, // three options begin so
		{"vhdxfs -o ", "ro,parent_", "ro,parent_dir="},
		{"vhdxfs -o ", "ro,lock=t", "ro,lock=try"},
		{"vhdxfs -o ", "ro,lock=o", "ro,lock=o"},
		{"vhdxfs -o ro ", "da", "data.vhdx"},
		{"vhdxfs snapshot ", "--keep", "--keep-name"},
		{"vhdxfs snapshot --keep-name ", "da", "data.vhdx"},
		{"vhdxfs info -o ", "lock=of", "lock=off"},
		{"vhdxfs create ", "--typ", "--type"},
		{"vhdxfs completion ", "f", "fish"},
		{"vhdxfs help ", "opt", "options"},
		{"mount.vhdx ", "da", "data.vhdx"},
		{"mount.vhdx data.vhdx mnt -o ", "comm", "commit="},
	}
	var lines, want []string
	for _, tc := range cases {
		lines, want = append(lines, tc.typed+tc.word), append(want, tc.typed+tc.want)
	}
	helper := filepath.Join(filepath.Dir(program.path(t)), "mount.vhdx")
	if err := os.Symlink("vhdxfs", helper); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(helper)
	directory := func(t *testing.T) string {
		t.Helper()
		dir := newDir(t)
		for _, name := range []string{"data.vhdx", "data.txt"} {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Mkdir(filepath.Join(dir, "mnt"), 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for _, shell := range []string{"bash", "zsh"} {
		t.Run(shell, func(t *testing.T) {
			if _, err := os.Stat("/usr/share/bash-completion/bash_completion"); err != nil && shell == "bash" {
				t.Skipf("needs bash-completion: %v", err)
			}
			for i, got := range typeTo(t, shell, directory(t), lines) {
				if got != want[i] {
					t.Errorf("%q becomes %q, want %q", lines[i], got, want[i])
				}
			}
		})
	}
	t.Run("fish", func(t *testing.T) {
		requireTools(t, "fish")
		dir := directory(t)
		script := filepath.Join(dir, "vhdxfs.fish")
		if err := os.WriteFile(script, []byte(mustVhdxfs(t, "completion", "fish")), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, tc := range cases {
			if tc.word == tc.want {
				continue // it lists candidates, and does not type
			}
			out := must(t, "env", "-C", dir, "HOME="+dir, "PATH="+filepath.Dir(program.path(t))+":"+os.Getenv("PATH"),
				"fish", "--no-config", "-c", fmt.Sprintf("source vhdxfs.fish; complete --do-complete '%s'", tc.typed+tc.word))
			var words []string
			for line := range strings.Lines(out) {
				word, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
				words = append(words, word)
			}
			if !slices.Contains(words, tc.want) {
				t.Errorf("%q is completed by %q, want %q", tc.typed+tc.word, words, tc.want)
			}
		}
	})
}
