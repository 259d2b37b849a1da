#!/bin/sh
# install.sh DESTDIR BINARIES: puts Varve's device side into a system tree.
# DESTDIR is the tree's root; BINARIES a directory with the static `varve` and
# `varve-boot`. Afterwards build the tree's initramfs (update-initramfs or dracut).
set -eu

destdir=${1:?"usage: install.sh DESTDIR BINARIES"}
binaries=${2:?"usage: install.sh DESTDIR BINARIES"}
from=$(dirname "$0")
units=$destdir/usr/lib/systemd/system

put() { # mode file target
	install -D -m "$1" "$2" "$destdir/$3"
}

put 755 "$binaries/varve" usr/bin/varve
put 755 "$binaries/varve-boot" usr/lib/varve/varve-boot

put 755 "$from/initramfs-tools/hooks/varve" usr/share/initramfs-tools/hooks/varve
for script in init-premount local-bottom; do
	put 755 "$from/initramfs-tools/scripts/$script/varve" \
		"usr/share/initramfs-tools/scripts/$script/varve"
done
put 755 "$from/dracut/90varve/module-setup.sh" usr/lib/dracut/modules.d/90varve/module-setup.sh
put 644 "$from/dracut/90varve/varve-boot.service" \
	usr/lib/dracut/modules.d/90varve/varve-boot.service

for unit in "$from"/systemd/*.service "$from"/systemd/*.timer; do
	put 644 "$unit" "usr/lib/systemd/system/$(basename "$unit")"
done
put 644 "$from/systemd/run-varve-physical.mount.d/varve.conf" \
	usr/lib/systemd/system/run-varve-physical.mount.d/varve.conf
# These two belong to every boot; the timers are the administrator's choice.
mkdir -p "$units/multi-user.target.wants"
for unit in varve-confirm.service varve-finalize.service; do
	ln -sfn "../$unit" "$units/multi-user.target.wants/$unit"
done

# An example beside the configuration; the configuration itself is the publisher's.
put 644 "$from/varve.toml" usr/share/doc/varve/varve.toml
# What is mounted is decided by the deployment: an fstab would mount over it.
: > "$destdir/etc/fstab"
