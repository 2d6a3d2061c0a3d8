# `make help` lists what there is to make.

GO       ?= go
PREFIX   ?= /usr/local
FUZZTIME ?= 10s
IMAGE    ?=
VM       ?= /var/tmp/vhdxfs-vm
# TESTFLAGS goes to go test, such as TESTFLAGS='-run Corpus'.
TESTFLAGS ?=

# All that do not test the whole program, without the engine.
packages = $(shell $(GO) list ./... | grep -v '/test$$\|/vhdx$$')

gotestsum := $(GO) tool gotestsum --format pkgname-and-test-fails --format-hide-empty-pkg --

# A directory there is a program.
scripts := $(filter-out $(patsubst %/,%,$(wildcard internal/scripts/*/)),$(sort $(wildcard internal/scripts/*))) .ci/run packaging/vhdxfs.ocf

# Debian packages, each with a command or file that shows that it is there.
demo_needs := fuse3:fusermount3 e2fsprogs:mkfs.ext4 mount:losetup util-linux:fstrim
test_needs := $(demo_needs) qemu-utils:qemu-img gcc:gcc libc6-dev:/usr/include/stdlib.h xz-utils:xz attr:getfattr fdisk:sfdisk \
	xfsprogs:mkfs.xfs btrfs-progs:mkfs.btrfs ntfs-3g:ntfs-3g libvhdi-utils:vhdiinfo fio:fio mandoc:mandoc rpm:rpm \
	systemd:systemd-analyze python3:python3 dosfstools:mkfs.vfat zstd:zstd exfatprogs:mkfs.exfat f2fs-tools:mkfs.f2fs \
	mtools:mcopy genisoimage:genisoimage exfat-fuse:mount.exfat-fuse udev:udevadm qemu-system-x86:qemu-system-x86_64 \
	libvirt-clients:virt-xml-validate libxml2-utils:xmllint fuse2fs:fuse2fs squashfuse:squashfuse squashfs-tools:mksquashfs

# The names by which mount(8) and umount(8) find the program. They look in /sbin only.
helpers := mount.vhdx mount.vhdxfs mount.fuse.vhdxfs umount.fuse.vhdxfs

.DEFAULT_GOAL := build
.PHONY: build demo test test-mounts test-engine test-short test-long test-vm test-cluster lint fuzz install package release clean help
export GO

build: ## Build bin/vhdxfs, a static binary
	@internal/scripts/build bin/vhdxfs

demo: ## Mount an image (IMAGE=path, else a new one), show what is inside, put everything away
	@internal/scripts/need $(demo_needs)
	@$(MAKE) --no-print-directory build
	@internal/scripts/demo "$(IMAGE)"

# Two rows of tests run side by side: what mounts images, and the engine, which computes and mounts none. What each command prints
# comes when it ends. A failure in one row does not stop the other.
test: ## Set up what the tests need and run them all; skipped tests are listed
	@internal/scripts/need $(test_needs)
	@$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=line test-mounts test-engine
	$(GO) test -count=1 -run 'Allocat|TestMemory' ./cache ./fs ./vhdx # what the race detector does not let be counted

# The race detector makes everything several times slower. The packages have it; of the tests of the whole program, those in
# which it does several things at once run it with the detector (detectRaces).
test-mounts:
	CGO_ENABLED=1 $(gotestsum) -race -count=1 -timeout 60m $(TESTFLAGS) $(packages)
	$(gotestsum) -count=1 -timeout 60m -parallel 4 $(TESTFLAGS) ./test

# Each of these tries hundreds of images or cuts, one after another, from one goroutine. The detector would make that ten times
# slower and find nothing: other tests do the same with it, in smaller numbers or several things at once.
one_goroutine := PowerCut|EachErrorIsReported|Foretold|FullHost|RepairOfRandomDamage

test-engine:
	CGO_ENABLED=1 $(gotestsum) -race -count=1 -timeout 60m $(or $(TESTFLAGS),-skip '$(one_goroutine)') ./vhdx
	$(if $(TESTFLAGS),,$(gotestsum) -count=1 -timeout 30m -run '$(one_goroutine)' ./vhdx)

test-short: ## In less than a minute, without root or mounts: what most changes need
	$(GO) test -short ./...

test-long: ## For hours: everything with the race detector, power cuts at every operation, long histories, a clean Debian
	@internal/scripts/need $(test_needs) mmdebstrap:mmdebstrap
	$(gotestsum) -count=1 -timeout 6h -run 'PowerCut' ./vhdx -crash.every -crash.rounds 3
	$(gotestsum) -count=1 -timeout 1h -run 'LosesPower' ./journal -crashruns 50
	CGO_ENABLED=1 $(gotestsum) -race -count=1 -timeout 6h ./test -long -kills 20

# VMTEST chooses among them, such as VMTEST=TestSharedStorage/cifs. COUNT is how often each case of TestSharedStorage runs.
VMTEST ?= TestSystemdMachine|TestSharedStorage

test-vm: ## Boot virtual machines, kept in the directory VM, to test mounts at boot, and images on NFS and SMB (VMTEST chooses, COUNT repeats)
	@internal/scripts/need $(test_needs) qemu-system-x86:qemu-system-x86_64 mmdebstrap:mmdebstrap
	$(GO) test -count=1 -timeout 12h -v -run '$(VMTEST)' ./test -vm $(VM) -repeat $(COUNT)

# CASES chooses among them, such as CASES='Idle|Rolling'. All take about a quarter of an hour. COUNT is how often each runs.
CASES ?= .
COUNT ?= 1

test-cluster: ## Set up a GlusterFS on this machine, as root, and let hosts fail that use one image (CASES chooses, COUNT repeats)
	@internal/scripts/need glusterfs-server:glusterd glusterfs-client:glusterfs xfsprogs:mkfs.xfs iproute2:ip
	$(GO) test -count=$(COUNT) -timeout 12h -v -run '$(CASES)' ./test/cluster -cluster

# What reads images, undo files, logs and partition tables. Elsewhere 64-bit numbers are descriptors, statistics and sizes of the kernel.
reading := ./vhdx/... ./journal ./cache ./internal/partition ./internal/content ./internal/erofs

lint: ## Static analysis: gofmt, go vet, staticcheck, conversions of large numbers, shellcheck
	@internal/scripts/need shellcheck:shellcheck
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt would change: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) run ./internal/conversions $(reading)
	shellcheck $(scripts)

fuzz: ## Run every fuzz target for FUZZTIME (10s)
	@internal/scripts/fuzz $(FUZZTIME)

install: build ## Install the binary below DESTDIR and PREFIX (/usr/local), and its names for mount(8) in /sbin
	install -D -m 755 bin/vhdxfs $(DESTDIR)$(PREFIX)/bin/vhdxfs
	install -d $(DESTDIR)/sbin
	for name in $(helpers); do ln -sf $(PREFIX)/bin/vhdxfs $(DESTDIR)/sbin/$$name || exit; done

package: ## Build dist/*.deb and *.rpm; a release has VERSION=1.2.3
	@internal/scripts/package

release: ## Build all files of a release in dist: VERSION=1.2.3
	@internal/scripts/release

clean: ## Remove what was built
	rm -rf bin dist

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
