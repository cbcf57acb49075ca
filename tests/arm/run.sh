#!/bin/bash
# run.sh DIR ARGUMENTS…: the Python of an emulated Cortex-A76 made by setup.sh; QEMU_CPU=cortex-a72 for a Pi 4.
DIR=$(cd "$1" && pwd)
shift
export QEMU_CPU=${QEMU_CPU:-cortex-a76} QEMU_LD_PREFIX=$DIR/root
unset LD_LIBRARY_PATH LD_PRELOAD PYTHONHOME
exec "$DIR/qemu-aarch64" "$DIR/root/usr/bin/python3.11" "$@"
