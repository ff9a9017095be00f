#!/bin/bash
# Builds a minimal guest kernel from Debian's linux-source package.
#
#   guest-kernel/minimal/build.sh [OUTPUT-FOLDER]        (default: ./minimal-kernel)
#
# Needs: apt-get, make, gcc, flex, bison, bc, libelf-dev, xz-utils, lz4; about 2 GB of disk. It installs nothing.
# Leaves OUTPUT-FOLDER/bzImage and OUTPUT-FOLDER/vmlinux (for the PVH entry). A run boots from any of our images:
#
#   wherry run --kernel OUTPUT-FOLDER/bzImage --initrd target/wherry/initrd-cloud-6.1.img …
#
# SERIES=6.12 builds another series if the archive has its source. CONFIG_ONLY=1 stops after the configuration.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "${1:-minimal-kernel}" && cd "${1:-minimal-kernel}" && pwd)
series=${SERIES:-6.1}

need=()
for pair in make:make gcc:gcc flex:flex bison:bison bc:bc xz:xz-utils lz4:lz4; do
    command -v "${pair%%:*}" >/dev/null || need+=("${pair#*:}")
done
[ -e /usr/include/libelf.h ] || need+=(libelf-dev)
if [ ${#need[@]} -gt 0 ]; then
    echo "missing; this installs it: apt-get install -y ${need[*]}" >&2
    exit 1
fi

source_dir=$out/linux-source-$series
if [ ! -e "$source_dir/Makefile" ]; then
    work=$(mktemp -d "$out/.partial-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    (cd "$work" && apt-get -q download "linux-source-$series" && dpkg-deb -x linux-source-*.deb package)
    tar -C "$work" -xf "$work/package/usr/src/linux-source-$series.tar.xz"
    mv "$work/linux-source-$series" "$source_dir"
fi

cd "$source_dir"
make -s tinyconfig
scripts/kconfig/merge_config.sh -m .config "$here/minimal.config" >/dev/null
make -s olddefconfig
lost=0
while read -r line; do
    grep -qxF "$line" .config || { echo "not in this kernel's configuration: $line" >&2; lost=1; }
done < <(grep -E '^CONFIG_' "$here/minimal.config")
[ "$lost" = 0 ]
[ -z "${CONFIG_ONLY:-}" ] || exit 0
make -s -j"$(nproc)" bzImage vmlinux
cp arch/x86/boot/bzImage vmlinux "$out/"
echo "$out/bzImage"
