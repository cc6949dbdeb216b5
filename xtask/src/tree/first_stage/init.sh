#!/bin/sh
# /init of images that cannot be written to as they are, or that have no /init, and the same in all of them. It makes the root
# writable, and becomes the image's own init: /usr/lib/snug/init, else what the kernel itself would have started.
#
# A root that stays read-only when it is asked to be writable is so by nature: squashfs, erofs, anything under dm-verity.
# Over such a one comes an overlay, in memory unless the kernel command line says otherwise:
#   overlay=DEVICE     on the filesystem of this disk (overlay=/dev/vdb): what is written survives a restart
#   overlay=tmpfs      in memory even where the root could be written
# An image whose spec says so (overlay-device = false) takes no disk, whatever the command line says: dm-verity covers the
# image, and not what another disk puts over it.
#
# POSIX sh for dash and busybox ash, with mount, umount and pivot_root of util-linux or busybox; an initramfs may have
# been here before or not.

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
umask 022

OWN=/usr/lib/snug
# How long the disk of the overlay may take to appear, in seconds.
DEVICE_GRACE=10

say() { echo "first-stage: $*"; }

# The kernel panics when its first process ends, and panic=-1 stops the machine.
give_up() {
    say "$*"
    exit 1
}

mounted() { grep -q " $1 " /proc/mounts; }

# argument NAME: the last one of the kernel command line, as the kernel would have it.
argument() { tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p" | tail -n 1; }

root_type() { sed -n 's,^[^ ]* / \([^ ]*\) .*,\1,p' /proc/mounts | tail -n 1; }

# Asked by trying: neither the type nor the mount options tell what a device under them allows.
root_is_writable() {
    mount -n -o remount,rw / 2>/dev/null
    (: >/.snug-writable) 2>/dev/null && rm -f /.snug-writable
}

# mount_layer DEVICE|tmpfs: mounts what takes the writes on /run/layer.
mount_layer() {
    if [ "$1" = tmpfs ]; then
        size=$(cat $OWN/overlay 2>/dev/null)
        mount -n -t tmpfs -o "mode=0755${size:+,size=$size}" overlay /run/layer
        return
    fi
    mounted /dev || mount -n -t devtmpfs devtmpfs /dev
    waited=0
    while [ ! -b "$1" ]; do
        [ "$waited" -lt "$DEVICE_GRACE" ] || give_up "no disk $1 for the overlay"
        sleep 1
        waited=$((waited + 1))
    done
    # Writing to memory instead would lose what was meant to stay.
    mount -n -o noatime "$1" /run/layer || give_up "cannot mount $1 for the overlay: it needs a filesystem, as by mkfs.ext4"
}

# lay_overlay DEVICE|tmpfs: makes an overlay over the root the new root.
lay_overlay() {
    # A read-only root has no other place to mount things on.
    mount -n -t tmpfs -o mode=0755 first-stage /run || return 1
    mkdir -p /run/layer /run/root
    mount_layer "$1" || return 1
    mkdir -p /run/layer/upper /run/layer/work
    # The merged root is owned, and may be entered, as the upper one is.
    chmod "$(stat -c %a /)" /run/layer/upper && chown "$(stat -c %u:%g /)" /run/layer/upper
    mount -n -t overlay -o lowerdir=/,upperdir=/run/layer/upper,workdir=/run/layer/work overlay /run/root || return 1
    for place in /dev /sys /proc; do
        # /proc last: it tells what is mounted.
        ! mounted $place || mount -n --move $place /run/root$place || return 1
    done
    cd /run/root && pivot_root . run && cd / || return 1
    # The overlay holds on to both of its layers; nobody else needs to see them.
    umount -n -l /run
}

[ -e /proc/mounts ] || mount -n -t proc -o nosuid,nodev,noexec proc /proc

where=$(argument overlay)
if [ -e $OWN/overlay-in-memory ] && [ "${where:-tmpfs}" != tmpfs ]; then
    say "overlay=$where is left out: this image takes no disk for it"
    where=
fi
if [ -z "$where" ] && root_is_writable; then
    say "root $(root_type) writable"
else
    below=$(root_type)
    # Written to by somebody else, a layer below is no longer one.
    mount -n -o remount,ro / 2>/dev/null
    if lay_overlay "${where:-tmpfs}"; then
        say "root $below under an overlay on ${where:-tmpfs}"
    else
        # A machine that can be looked at is better than none.
        umount -n -l /run/layer 2>/dev/null
        umount -n -l /run 2>/dev/null
        say "root $below read-only: no overlay (does the kernel have CONFIG_OVERLAY_FS?)"
    fi
fi

for init in $OWN/init /sbin/init /etc/init /bin/init; do
    [ ! -x "$init" ] || exec "$init" "$@"
done
say "this image has no init: a shell instead"
exec /bin/sh
