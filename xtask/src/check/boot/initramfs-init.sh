#!/bin/busybox sh
# Runs before the image: loads modules, mounts root=, becomes init=.

/bin/busybox --install -s /bin
PATH=/bin
export PATH

# How long the disk may take to appear, in tenths of a second.
PATIENCE=100

say() { echo "initramfs: $*"; }

# Ends the machine: the first process exits, the kernel panics, and panic=-1 restarts, at which QEMU ends.
give_up() {
    say "$*"
    exit 1
}

# argument NAME DEFAULT
argument() {
    value=$(tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p" | tail -n 1)
    echo "${value:-$2}"
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
say modules
while read -r module; do
    insmod "/modules/$module" || say "cannot load $module"
done </modules/order

# wait_for DEVICE
wait_for() {
    waited=0
    while [ ! -b "$1" ]; do
        [ "$waited" -lt "$PATIENCE" ] || give_up "no disk $1"
        sleep 0.1
        waited=$((waited + 1))
    done
}

# dm-mod.create="NAME,UUID,MINOR,FLAGS,TABLE", as in the kernel's Documentation/admin-guide/device-mapper/dm-init.rst: a
# kernel that has device-mapper as a module ignores it. Only one device with a table of one line is supported.
mapped=$(sed -n 's/.*dm-mod\.create="\([^"]*\)".*/\1/p' /proc/cmdline)
if [ -n "$mapped" ] && [ ! -b /dev/dm-0 ]; then
    table=${mapped#*,*,*,*,}
    # shellcheck disable=SC2086 # The words of `0 SECTORS verity 1 DISK …`.
    set -- $table
    wait_for "$5"
    # There is no udev to wait for.
    DM_DISABLE_UDEV=1 /dmsetup/loader --library-path /dmsetup /dmsetup/dmsetup create "${mapped%%,*}" --readonly \
        --table "$table" || give_up "cannot open $5 by $3"
    say "${mapped%%,*} by $3 over $5"
fi

root=$(argument root /dev/vda)
wait_for "$root"

# As the kernel does it: read-only unless the command line says otherwise, and then too where the disk is.
mode=ro
case " $(cat /proc/cmdline) " in *' rw '*) mode=rw ;; esac
# Without a type, mount tries all that the kernel knows.
type=$(argument rootfstype '')
mount ${type:+-t "$type"} -o $mode "$root" /root ||
    mount ${type:+-t "$type"} -o ro "$root" /root || give_up "cannot mount $root"
say "$(sed -n 's,^[^ ]* /root \([^ ]*\).*,\1,p' /proc/mounts) on $root"

# The image gets /dev as from a kernel with CONFIG_DEVTMPFS_MOUNT; it mounts the rest itself.
mount --move /dev /root/dev || give_up "the image has no /dev"
init=$(argument init /init)
umount /sys /proc
exec switch_root /root "$init"
