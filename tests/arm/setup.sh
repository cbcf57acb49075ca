#!/bin/bash
# setup.sh DIR: an emulated Cortex-A76 with Debian 12's Python and our wheels in DIR, from Debian's and Python's package
# indexes alone. Needs an x86-64 Debian or Ubuntu with apt, dpkg-deb, tar and pip; installs nothing outside DIR.
set -euo pipefail
DIR=$(mkdir -p "$1" && cd "$1" && pwd)
PACKAGES="numpy numba onnx pytest hypothesis"
# where this machine's own packages come from
SOURCES=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true)
MIRROR=${MIRROR:-$(sed -nE 's#^(URIs:|deb( \[[^]]*\])?) +([^ ]*/debian/?)( .*)?$#\3#p' <<< "$SOURCES" | head -1)}
KEYS=${KEYS:-/usr/share/keyrings/debian-archive-keyring.gpg}
ROOT=$DIR/root SITE=$DIR/root/usr/local/lib/python3.11/dist-packages

# private ARCHITECTURE: an apt of its own, with nothing installed
private() {
  local apt=$DIR/apt-$1
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
  : > "$apt/status"
  echo "deb [signed-by=$KEYS] $MIRROR bookworm main" > "$apt/sources.list"
  cat > "$apt/apt.conf" <<CONF
APT::Architecture "$1"; APT::Architectures { "$1"; }; APT::Install-Recommends "false"; APT::Sandbox::User "root";
Dir::Etc::SourceList "$apt/sources.list"; Dir::Etc::SourceParts "/dev/null"; Dir::Etc::PreferencesParts "/dev/null";
Dir::State::Lists "$apt/lists"; Dir::State::status "$apt/status"; Dir::Cache "$apt/cache"; Debug::NoLocking "true";
CONF
  export APT_CONFIG=$apt/apt.conf
  apt-get -qq update
}

if [ ! -x "$DIR/qemu-aarch64" ]; then
  private amd64
  (cd "$DIR" && apt-get -qq download qemu-user-static)
  dpkg-deb --fsys-tarfile "$DIR"/qemu-user-static_*.deb | tar x -O ./usr/bin/qemu-aarch64-static > "$DIR/qemu.part"
  rm "$DIR"/qemu-user-static_*.deb
  chmod +x "$DIR/qemu.part" && mv "$DIR/qemu.part" "$DIR/qemu-aarch64"
fi

if [ ! -e "$DIR/.root" ]; then
  private arm64
  apt-get -qq install -y --download-only python3.11 libgomp1 libstdc++6 zlib1g libc-bin > "$DIR/apt.log"
  rm -rf "$ROOT" && mkdir -p "$ROOT"/usr/{bin,sbin,lib} "$ROOT/proc"
  for x in bin sbin lib; do ln -s "usr/$x" "$ROOT/$x"; done
  for deb in "$DIR"/apt-arm64/cache/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar x --keep-directory-symlink --no-same-owner --exclude=./tmp -C "$ROOT"
  done
  # Paths that exist here hide the host's: the guest shares /tmp, /root and /dev with it. Its cpuinfo it must not
  # share: LLVM would not know the CPU.
  rm -rf "$ROOT"/{tmp,root,dev,home,run}
  for i in 0 1 2 3; do
    printf 'processor\t: %d\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n' $i
    printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\n\n'
  done > "$ROOT/proc/cpuinfo"
  touch "$DIR/.root"
fi

if [ "$(cat "$DIR/.wheels" 2>/dev/null)" != "$PACKAGES" ]; then
  TAGS="--only-binary=:all: --implementation cp --python-version 3.11 --abi cp311 --abi abi3 --abi none"
  for glibc in 34 28 27 17; do TAGS+=" --platform manylinux_2_${glibc}_aarch64"; done
  TAGS+=" --platform manylinux2014_aarch64"
  rm -rf "$SITE"
  # shellcheck disable=SC2086
  python3 -m pip --disable-pip-version-check install -q --target "$SITE" $TAGS $PACKAGES
  echo "$PACKAGES" > "$DIR/.wheels"
fi
