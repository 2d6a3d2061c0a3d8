package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// statsAttribute is the attribute of a mount that has its statistics as JSON.
const statsAttribute = "stats"

func newStats() *cobra.Command {
	var watch, asJSON bool
	var count int
	cmd := &cobra.Command{
		Use:   "stats [--watch] IMAGE|MOUNTPOINT",
		Short: "Show what a mount does: reads, writes, syncs, space",
		Long: `Show the statistics of a mount since it was mounted. With --watch, show one line for each second until interrupted:
requests and bytes per second, space that the image holds, and metadata that is not flushed yet.`,
		Example: `  vhdxfs stats /mnt/vhdx
  vhdxfs stats --watch data.vhdx`,
		Aliases:           []string{"top"},
		Args:              exactArgs("IMAGE"),
		ValidArgsFunction: completeMounted,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := active.Find(args[0])
			if err != nil {
				return mountError(err)
			}
			if watch || cmd.CalledAs() == "top" {
				ctx, stop := interruptible(cmd.Context())
				defer stop()
				return watchStats(ctx, cmd.OutOrStdout(), sizesOf(cmd), m.MountPoint, count)
			}
			values, err := askStats(m.MountPoint)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), values)
			}
			return printStats(cmd.OutOrStdout(), values)
		},
	}
	addJSON(cmd, &asJSON)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show one line for each second; so does vhdxfs top")
	cmd.Flags().IntVar(&count, "count", 0, "with --watch: end after `N` lines")
	return cmd
}

// askStats returns the statistics of a mount by their names.
func askStats(mountPoint string) (map[string]int64, error) {
	text, err := mounts.Attribute(mountPoint, statsAttribute)
	if err != nil {
		return nil, err
	}
	var values map[string]int64
	if err := json.Unmarshal([]byte(text), &values); err != nil {
		return nil, fmt.Errorf("%s: statistics of an unknown form: %w", mountPoint, err)
	}
	return values, nil
}

func printStats(out io.Writer, values map[string]int64) error {
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	for _, name := range names {
		fmt.Fprintf(w, "%d\t  %s\n", values[name], name)
	}
	return w.Flush()
}

// watchInterval is the time between two lines of --watch.
const watchInterval = time.Second

// watchStats writes what happens on a mount, a line each second, until ctx ends or after count lines, if that is above 0.
func watchStats(ctx context.Context, out io.Writer, size sizeWriter, mountPoint string, count int) error {
	const row, header = "%8s %12s %8s %12s %8s %12s %12s\n", 20 // lines between two headers
	last, err := askStats(mountPoint)
	if err != nil {
		return err
	}
	for line, at := 0, time.Now(); count <= 0 || line < count; line++ {
		if line%header == 0 {
			if _, err := fmt.Fprintf(out, row, "READS/s", "READ/s", "WRITES/s", "WRITTEN/s", "SYNCS/s", "ALLOCATED", "UNFLUSHED"); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchInterval):
		}
		now, err := askStats(mountPoint)
		if err != nil {
			return err
		}
		seconds := time.Since(at).Seconds()
		at = time.Now()
		rate := func(name string) int64 { return int64(float64(now[name]-last[name])/seconds + 0.5) }
		number := func(name string) string { return fmt.Sprint(rate(name)) }
		const page = 4 << 10
		_, err = fmt.Fprintf(out, row, number("reads"), size(rate("read_bytes")), number("writes"), size(rate("written_bytes")), number("syncs"),
			size(now["allocated_bytes"]), size(page*(now["dirty_pages"]+now["pages_in_log"])))
		if err != nil {
			return err
		}
		last = now
	}
	return nil
}
