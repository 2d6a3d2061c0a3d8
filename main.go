// Command vhdxfs mounts a Hyper-V VHDX image as one raw file.
package main

import (
	"context"
	"os"

	"github.com/vhdxfs/vhdxfs/internal/cli"
	_ "github.com/vhdxfs/vhdxfs/internal/startup"
)

func main() {
	os.Exit(cli.Run(context.Background(), os.Args, os.Stdout, os.Stderr))
}
