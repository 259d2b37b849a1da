#!/bin/bash
# dracut: the boot stage as a service between the mount of the root file system and
# everything that looks into it. Needs systemd in the initramfs (dracut's default).

check() {
	[ -x "$dracutsysrootdir/usr/lib/varve/varve-boot" ]
}

depends() {
	echo systemd
}

installkernel() {
	hostonly='' instmods overlay evdev i8042 atkbd usbhid hid-generic hid-hyperv virtio_input
}

install() {
	inst_simple "/usr/lib/varve/varve-boot" "/usr/bin/varve-boot"
	inst_simple "$moddir/varve-boot.service" "$systemdsystemunitdir/varve-boot.service"
	mkdir -p "$initdir/etc/modules-load.d"
	printf '%s\n' overlay evdev > "$initdir/etc/modules-load.d/varve.conf"
	$SYSTEMCTL -q --root "$initdir" add-requires initrd-root-fs.target varve-boot.service
}
