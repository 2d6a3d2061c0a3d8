# vhdxfs in a container: the static binary and nothing else. docs/containers.md says how to run it and what for.
#
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" -t vhdxfs .
#   docker run --rm --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor:unconfined \
#     -v /srv/images:/images -v /mnt/vhdx:/mnt/vhdx:rshared vhdxfs /images/disk.vhdx /mnt/vhdx

# The digest is that of the image for all platforms. A tag can be moved to another image, a digest cannot.
ARG GO_IMAGE=docker.io/library/golang:1.26.8-bookworm@sha256:a688600ca24f8a4d3ca77f95b0dd40704a9fc787c826660eb7ba0b641b8b175d
FROM ${GO_IMAGE} AS build
WORKDIR /src
# The modules change less often than the code, so they get a layer of their own.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# The directory .git is not copied, so the build has to be told what it builds.
ARG VERSION=
ARG REVISION=
RUN VERSION=${VERSION} REVISION=${REVISION} internal/scripts/build /vhdxfs

# Root mounts and unmounts by system calls of its own. No other program is started, so none is left for process 1 to
# wait for, and none is in the image.
FROM scratch
ARG VERSION=
ARG REVISION=
COPY --from=build /vhdxfs /usr/bin/vhdxfs
LABEL org.opencontainers.image.title="vhdxfs" \
      org.opencontainers.image.description="Mounts Hyper-V VHDX images as raw disks" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Unmounts; the container ends when everything is written.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/vhdxfs"]
CMD ["--help"]
