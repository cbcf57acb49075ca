#!/bin/bash
# count.sh DIR [linear|attention]: instructions that each hot kernel executes on the emulated Cortex-A76 of setup.sh's DIR, as
# a table; ten minutes. QEMU_CPU=cortex-a72 counts the path without dot products. Needs a C compiler.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd) DIR=$(cd "$1" && pwd)
shift
C=$DIR/counting
export QEMU_CPU=${QEMU_CPU:-cortex-a76}

# Debian's static emulator takes no plugins, so the dynamic one, with the two libraries it wants.
if [ ! -e "$C/.ready" ]; then
  rm -rf "$C" && mkdir -p "$C/debs"
  (cd "$C/debs" && APT_CONFIG=$DIR/apt-amd64/apt.conf apt-get -qq download qemu-user libcapstone4 liburing2)
  for deb in "$C"/debs/*.deb; do dpkg-deb -x "$deb" "$C"; done
  rm -rf "$C/debs"
  touch "$C/.ready"
fi
gcc -O2 -shared -fPIC -o "$C/count.so" "$HERE/count.c"

ROOT=$C/root-$QEMU_CPU # the guest looks for its CPU in /proc/cpuinfo
mkdir -p "$ROOT/proc"
for x in "$DIR"/root/*; do [ "${x##*/}" = proc ] || ln -sfn "$x" "$ROOT/${x##*/}"; done
cp "$DIR/root/proc/cpuinfo" "$ROOT/proc/cpuinfo"
if [ "$QEMU_CPU" = cortex-a72 ]; then
  sed -i 's/0xd0b/0xd08/; s/ \(atomics\|fphp\|asimdhp\|asimdrdm\|lrcpc\|dcpop\|asimddp\)//g' "$ROOT/proc/cpuinfo"
fi

unset LD_PRELOAD PYTHONHOME
export LD_LIBRARY_PATH=$C/usr/lib/x86_64-linux-gnu QEMU_LD_PREFIX=$ROOT QEMU_PLUGIN=$C/count.so
export NUMBA_NUM_THREADS=1 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=${HERE%/tests/arm}
export QEMU_UNSET_ENV=LD_LIBRARY_PATH
exec "$C/usr/bin/qemu-aarch64" "$ROOT/usr/bin/python3.11" "$HERE/count.py" "$@"
