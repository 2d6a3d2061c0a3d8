# vhdxfs in a container. To see the mount on the host, its folder must lie on a shared mount there:
#
#   docker build -t vhdxfs .
#   docker run --rm --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor:unconfined \
#     -v /srv/images:/images -v /mnt/vhdx:/mnt/vhdx:rshared vhdxfs -f /images/disk.vhdx /mnt/vhdx
#
# SYS_ADMIN is for mount(2). AppArmor's default profile for containers forbids that call all the same.

FROM golang:1.26-bookworm AS build
WORKDIR /src
# The modules change less often than the code, so they get a layer of their own.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o /vhdxfs .

FROM alpine:3.22
RUN apk add --no-cache fuse3
COPY --from=build /vhdxfs /usr/bin/vhdxfs
# The mount is put away before the container ends.
STOPSIGNAL SIGTERM
ENTRYPOINT ["vhdxfs"]
CMD ["--help"]
