#!/bin/bash
# system.sh DIR PACKAGE ARGUMENTS…: PACKAGE on an emulated machine of 4 Cortex-A76 cores and 2 GB with a kernel of its own, where
# limits of memory are real: runs the Python of setup.sh's DIR on ARGUMENTS; this repository is /job there and the package
# /data. By hand and slow, 20 minutes for E2B; the machine takes 1.5 GB of disk and the package as much as it has. MEM=2G SMP=4.
#     tests/arm/setup.sh .arm64 && tests/arm/system.sh .arm64 ~/models/gemma-4-E2B /job/tests/arm/session.py /data
set -euo pipefail
DIR=$(cd "$1" && pwd) PACKAGE=$(cd "$2" && pwd)
shift 2
HERE=$(cd "$(dirname "$0")/../.." && pwd) S=$DIR/system
mkdir -p "$S"

# fetch CONF-FOLDER PACKAGE…: .debs that this machine lacks, unpacked under $S/got
fetch() {
  local folder=$1
  shift
  rm -rf "$S/debs" && mkdir -p "$S/debs/partial" "$S/got"
  APT_CONFIG=$folder/apt.conf apt-get -qq update
  (cd "$S/debs" && APT_CONFIG=$folder/apt.conf apt-get -qq download "$@")
  for deb in "$S"/debs/*.deb; do dpkg-deb -x "$deb" "$S/got"; done
  rm -rf "$S/debs"
}

if [ ! -e "$S/.emulator" ]; then
  fetch "$DIR/apt-arm64" busybox-static "$(APT_CONFIG=$DIR/apt-arm64/apt.conf apt-cache depends linux-image-cloud-arm64 | awk '/Depends:/{print $2; exit}')"
  mkdir -p "$S"/init/{bin,m,proc,sys,dev,mnt}
  cp "$S/got/bin/busybox" "$S/init/bin/"
  for m in virtio/virtio virtio/virtio_ring virtio/virtio_pci_modern_dev virtio/virtio_pci_legacy_dev virtio/virtio_pci block/virtio_blk; do
    cp "$S"/got/lib/modules/*/kernel/drivers/$m.ko "$S/init/m/"
  done
  cp "$S"/got/boot/vmlinuz* "$S/kernel"
  rm -rf "$S/got"
  mkdir -p "$DIR/apt-system/lists/partial" "$DIR/apt-system/cache/archives/partial"
  sed 's#apt-amd64#apt-system#g; s#Dir::State::status "[^"]*";##' "$DIR/apt-amd64/apt.conf" > "$DIR/apt-system/apt.conf"
  cp "$DIR/apt-amd64/sources.list" "$DIR/apt-system/"
  export APT_CONFIG=$DIR/apt-system/apt.conf
  apt-get -qq update
  apt-get -qq install -y --download-only --reinstall qemu-system-arm > "$S/apt.log"
  for deb in "$DIR"/apt-system/cache/archives/*.deb; do dpkg-deb -x "$deb" "$S/qemu"; done
  rm -rf "$DIR/apt-system/cache/archives"
  unset APT_CONFIG
  touch "$S/.emulator"
fi

cat > "$S/init/init" <<'INIT'
#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t devtmpfs dev /dev
for m in virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do $B insmod /m/$m.ko; done
while [ ! -b /dev/vdc ]; do $B sleep 0.1; done
$B mount -t ext4 -o noatime /dev/vda /mnt
for d in proc sys dev tmp data job root; do $B mkdir -p /mnt/$d; done
$B mount -t proc proc /mnt/proc; $B mount -t sysfs sys /mnt/sys; $B mount -t devtmpfs dev /mnt/dev
$B mkdir -p /mnt/dev/shm; $B mount -t tmpfs shm /mnt/dev/shm
$B mount -t ext4 -o ro /dev/vdc /mnt/data
$B tar x -f /dev/vdb -C /mnt/job
export HOME=/root PATH=/usr/bin PYTHONUNBUFFERED=1 PYTHONPATH=/job
$B chroot /mnt /usr/bin/python3.11 $($B cat /mnt/job/.arguments); echo "@@status $?"
$B poweroff -f
INIT
chmod +x "$S/init/init"
python3 - "$S/init" "$S/init.gz" <<'PY'
import gzip, pathlib, sys
root, out = pathlib.Path(sys.argv[1]), gzip.open(sys.argv[2], "wb", 6)
def add(name, mode, data=b"", major=0, minor=0):
    global number
    number += 1
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % f for f in fields) + name.encode() + b"\0"
    head += b"\0" * (-len(head) % 4) + data
    out.write(head + b"\0" * (-len(head) % 4))
number = 0
for path in sorted(root.rglob("*")):
    name = str(path.relative_to(root))
    add(name, 0o40755) if path.is_dir() else add(name, 0o100755, path.read_bytes())
add("dev/console", 0o20600, major=5, minor=1)
add("TRAILER!!!", 0)
out.close()
PY

image() { /usr/sbin/mke2fs -q -t ext4 -O ^has_journal -d "$1" "$2.part" "$(($(du -sm "$1" | cut -f1) * 5 / 4 + ${3:-16}))M" && mv "$2.part" "$2"; }
[ "$S/disk.img" -nt "$DIR/.wheels" ] || image "$DIR/root" "$S/disk.img" 200
[ -e "$S/data.img" ] && [ "$(cat "$S/data.of")" = "$PACKAGE" ] || { rm -f "$S/data.img"; image "$PACKAGE" "$S/data.img" 64; echo "$PACKAGE" > "$S/data.of"; }
T=$(mktemp -d)
trap 'rm -rf "$T"' EXIT
echo "$@" > "$T/.arguments"
tar c -f "$T/job.tar" -C "$HERE" edgegemma tests/arm -C "$T" .arguments
Q=$S/qemu
LD_LIBRARY_PATH=$Q/usr/lib/x86_64-linux-gnu:$Q/lib/x86_64-linux-gnu "$Q/usr/bin/qemu-system-aarch64" -L "$Q/usr/share/qemu" \
  -M virt -cpu "${CPU:-cortex-a76}" -smp "${SMP:-4}" -m "${MEM:-2G}" -accel tcg,tb-size=512 \
  -display none -nodefaults -serial stdio -no-reboot -kernel "$S/kernel" -initrd "$S/init.gz" \
  -append "console=ttyAMA0 quiet panic=-1 rdinit=/init" -drive "file=$S/disk.img,format=raw,if=virtio,snapshot=on" \
  -drive "file=$T/job.tar,format=raw,if=virtio,readonly=on" -drive "file=$S/data.img,format=raw,if=virtio,readonly=on" \
  < /dev/null | sed -u 's/\r$//' | tee "$T/log" | grep --line-buffered -v '^@@status' || true
exit "$(sed -n 's/^@@status //p' "$T/log" | tail -1 | grep . || echo 124)"
