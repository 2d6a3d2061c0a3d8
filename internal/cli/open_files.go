package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/filesystem"
	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
)

// An openCommand attaches an image and mounts the file systems on it, or leaves nothing behind.
type openCommand struct {
	attach       attachCommand
	partition    string
	mountOptions string
}

func newOpen() *cobra.Command {
	var c openCommand
	cmd := &cobra.Command{
		Use:   "open [flags] IMAGE [DIR]",
		Short: "Mount the file systems on an image",
		Long: `Attach the VHDX file IMAGE, find the partitions and file systems on its disk, and mount them. The command prints what is
on the disk and where it is mounted. vhdxfs close undoes all of it. If a step fails, nothing stays attached or mounted.

A single file system is mounted on DIR, and so is the one that --partition names. Several are mounted in directories in DIR,
which are named like their labels, or p1, p2 and so on. If DIR does not exist, open creates it and close removes it. Without
DIR, they are all in directories in a new directory in ` + rootRunDir + `, which only root can enter.

An image that cannot be written is opened read-only. A file system that was not unmounted is then mounted without replay
of its journal (ext4 noload, XFS norecovery), and a note says so. Set-user-ID programs and device files on the disk have
no effect. Encrypted volumes, LVM and RAID are listed with what to do.`,
		Example: `  vhdxfs open data.vhdx /mnt
  vhdxfs open -r --partition ntfs windows.vhdx
  vhdxfs close data.vhdx`,
		Args:              imageAndDir,
		ValidArgsFunction: completeMount,
		RunE:              c.run,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVarP(&c.attach.readOnly, "read-only", "r", false, "same as -o ro: no byte of the image changes")
	f.StringVar(&c.partition, "partition", "", "mount only one partition: `N|LABEL|TYPE` is its number, label or file system")
	f.StringVar(&c.mountOptions, "mount-options", "", "options for the file systems, a `LIST` separated by commas, such as noexec or uid=1000")
	f.StringArrayVarP(&c.attach.options, "options", "o", nil, "options for the image, a `LIST` separated by commas; see vhdxfs help options")
	addJSON(cmd, &c.attach.json)
	completeOptions(cmd, mountoption.Mount|mountoption.Image)
	return cmd
}

// imageAndDir wants one argument or two.
func imageAndDir(cmd *cobra.Command, args []string) error {
	if len(args) == 2 {
		return exactArgs("IMAGE", "DIR")(cmd, args)
	}
	return exactArgs("IMAGE")(cmd, args)
}

func (c *openCommand) run(cmd *cobra.Command, args []string) error {
	o, err := c.attach.parse()
	if err != nil {
		return err
	}
	if o.Partition != 0 && c.partition != "" {
		return usageError("-o partition= and --partition exclude each other")
	}
	if !o.ReadOnly && o.Mount.Overlay == "" && !o.ROFallback {
		o.ROFallback = true
		c.attach.options = append(c.attach.options, "ro_fallback")
	}
	// A signal must not end this process with half of the work done.
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	signal.Ignore(syscall.SIGPIPE)
	dir := ""
	if len(args) > 1 {
		dir = args[1]
	}
	err = c.open(ctx, cmd, o, args[0], dir)
	if ctx.Err() != nil {
		return interruptedAttach(err)
	}
	return mountError(err)
}

// An openReport is what the JSON of open says, and that of close.
type openReport struct {
	Image      string        `json:"image"`
	Directory  string        `json:"directory"`   // of all file systems
	MountPoint string        `json:"mount_point"` // of the image
	Mode       string        `json:"mode"`        // rw or ro, of the image
	Devices    []string      `json:"devices"`
	Volumes    []*openVolume `json:"volumes"`
}

func (c *openCommand) open(ctx context.Context, cmd *cobra.Command, o *mountoption.Options, image, dir string) (err error) {
	done, err := takeTurn(ctx, image)
	if err != nil {
		return err
	}
	defer done()
	m := openAlready(o, image)
	var undo undoList
	if m == nil {
		m, undo, err = c.attach.bring(ctx, o, []string{image}, cmd.OutOrStdout(), cmd.ErrOrStderr())
		if err != nil {
			return err
		}
	}
	defer func() {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			err = errors.Join(err, undo.run())
		}
	}()
	r := &openReport{Image: m.Image, MountPoint: m.MountPoint, Mode: m.Mode, Volumes: volumesOf(ctx, m)}
	for _, d := range m.Devices {
		r.Devices = append(r.Devices, d.Path)
	}
	chosen, err := choose(m.Image, c.partition, r.Volumes)
	if err != nil {
		return err
	}
	if r.Directory, err = c.openedAt(m, chosen, dir); err == nil && r.Directory == "" {
		err = c.mountAll(ctx, r, chosen, dir, &undo)
	}
	if err != nil {
		return err
	}
	if c.attach.json {
		return writeJSON(cmd.OutOrStdout(), r)
	}
	return r.print(cmd.OutOrStdout(), sizesOf(cmd))
}

// openAlready returns the mount of an image that is attached, for reading only where that is all that is wanted.
func openAlready(o *mountoption.Options, image string) *active.Mount {
	if m := alreadyAttached(o, image, ""); m != nil || !o.ROFallback {
		return m
	}
	ro := *o
	ro.ReadOnly = true
	return alreadyAttached(&ro, image, "")
}

// openedAt returns the directory at which open has mounted the chosen volumes already, and "" where it has not. Mounts in other
// places are an error.
func (c *openCommand) openedAt(m *active.Mount, chosen []*openVolume, dir string) (string, error) {
	want := dir
	if dir != "" {
		var err error
		if want, err = absPath(dir); err != nil {
			return "", err
		}
	}
	names := dirNames(chosen)
	mounted := 0
	for i, v := range chosen {
		if len(v.others) > 0 {
			return "", fmt.Errorf("%s: %s cannot be mounted: it is %s", m.Image, v.name(), strings.Join(v.others, ", "))
		}
		if len(v.places) == 0 {
			continue
		}
		at := v.places[0]
		base := at
		if len(chosen) > 1 {
			base = strings.TrimSuffix(at, "/"+names[i])
		}
		if len(v.places) > 1 || len(chosen) > 1 && base == at || want != "" && want != base {
			return "", fmt.Errorf("%s: %s is already mounted on %s; to unmount all of it, run: vhdxfs close %s", m.Image, v.name(), strings.Join(v.places, ", "), terminal.Shell(m.Image))
		}
		want = base
		v.settle(at)
		mounted++
	}
	if mounted == 0 {
		return "", nil
	}
	return want, nil
}

// settle notes where a volume is mounted.
func (v *openVolume) settle(at string) {
	v.MountPoint, v.Mode = at, "rw"
	if mountIsReadOnly(at) {
		v.Mode = "ro"
	}
}

// mountAll mounts the volumes, and gives them places when all are mounted.
func (c *openCommand) mountAll(ctx context.Context, r *openReport, chosen []*openVolume, dir string, undo *undoList) error {
	trees := make([]*filesystem.Tree, 0, len(chosen))
	defer func() {
		for _, t := range trees {
			t.Close() // what has a place stays
		}
	}()
	mounted := 0
	for _, v := range chosen {
		t, err := filesystem.Mount(ctx, filesystem.Request{Device: v.Device, Kind: v.FileSystem, ReadOnly: r.Mode == "ro", Options: splitList(c.mountOptions)})
		switch {
		case err == nil:
			mounted++
		case errors.Is(err, filesystem.ErrNoDriver) && len(chosen) > 1:
			v.Note = err.Error()
		case len(chosen) > 1:
			err = fmt.Errorf("%w; --partition opens another one alone", err)
			fallthrough
		default:
			return fmt.Errorf("%s: cannot mount %s: %w", r.Image, v.describe(), err)
		}
		trees = append(trees, t)
	}
	if mounted == 0 {
		return fmt.Errorf("%s: %s: %s", r.Image, chosen[0].describe(), chosen[0].Note)
	}
	top, err := openPlace(r.Image, dir, undo)
	if err != nil {
		return err
	}
	defer top.Close()
	r.Directory = top.path
	names := dirNames(chosen)
	for i, v := range chosen {
		if trees[i] == nil {
			continue
		}
		at := top
		if len(chosen) > 1 || dir == "" { // the root of a file system would hide a directory that others cannot enter
			if at, err = makePlace(top.path+"/"+names[i], partPlace, false, undo); err != nil {
				return err
			}
			defer at.Close()
		}
		if err := trees[i].Place(at.Fd()); err != nil {
			return fmt.Errorf("%s: mount %s on %s: %w", r.Image, v.describe(), at.path, err)
		}
		undo.add(func() error { return unmountPlace(at.path) })
		v.Note = trees[i].Note
		v.settle(at.path)
		if len(chosen) == 1 {
			r.Directory = at.path
		}
	}
	return nil
}

func splitList(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

// print writes what is on the disk, and where it is.
func (r *openReport) print(out io.Writer, size sizeWriter) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "DEVICE\tSIZE\tFILESYSTEM\tLABEL\tMODE\tMOUNTED ON")
	for _, v := range r.Volumes {
		at := printable(v.MountPoint)
		if at == "" {
			at = "-"
		}
		if v.Note != "" {
			at += " (" + v.Note + ")"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", v.Device, size(v.Size), orDash(v.FileSystem), orDash(printable(v.Label)), orDash(v.Mode), at)
	}
	return w.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
