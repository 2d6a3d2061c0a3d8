package mountoption

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Directories of parents come from the options, the environment and the configuration file, in this order.
func TestDefaultParentDirs(t *testing.T) {
	defer func(was string) { configFile = was }(configFile)
	for _, c := range []struct {
		config, variable string
		options          []string
		want             string // the directories, or a part of the error
		bad              bool
	}{
		{want: ""},
		{config: "# comment\n\nparent_dir = /srv/base\n\tparent_dir=/srv/a b \n", want: "/srv/base /srv/a b"},
		{variable: "/one::/two", want: "/one /two"},
		{config: "parent_dir=/c", variable: "/e", options: []string{"parent_dir=/o"}, want: "/o /e /c"},
		{config: "parent_dir=/c", options: []string{"ro"}, want: "/c"},
		{config: "parent_dir=relative", want: "line 1: parent_dir must be an absolute path", bad: true},
		{config: "\nparents=/x", want: `line 2: unknown setting "parents"`, bad: true},
		{variable: "relative", want: "VHDXFS_PARENT_DIRS", bad: true},
	} {
		configFile = filepath.Join(t.TempDir(), "vhdxfs.conf")
		if c.config != "" {
			if err := os.WriteFile(configFile, []byte(c.config), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		t.Setenv(parentDirsVariable, c.variable)
		o, err := Parse(c.options, Image|Mount)
		switch {
		case c.bad:
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v: %v", c, err)
			}
		case err != nil || !slices.Equal(o.Open.ParentDirs, strings.FieldsFunc(strings.ReplaceAll(c.want, " /", "\x00/"), func(r rune) bool { return r == 0 })):
			t.Errorf("%+v: %q, %v", c, o.Open.ParentDirs, err)
		}
	}
}
