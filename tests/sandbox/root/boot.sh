# The guest's PID 1 until systemd takes over: puts the guest's file systems together and steps into them.
#
# All mounts are made in the guest's own mount namespace, so that the kernel removes them, and the loop device
# with them, when the last process of the guest is gone; whatever way that happens.
#
# Arguments: the sandbox's folder, its host name, `first` or `again`, the install tree (or empty), then the
# binds, each as SRC:DST or SRC:DST:ro.
set -eu
umask 022
dir=$1 name=$2 boot=$3 tree=$4
shift 4

# Until the host has moved our parent out of the guest's cgroup. End of file: the host gave up.
read -r _ || exit 1
exec </dev/null

root=$dir/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$root"

if [ "$boot" = first ]; then
    # What the host has enabled, mounts by /etc/fstab or has logged is none of the guest's business. Removed
    # from the guest's disk only: the host's files lie below it, read-only.
    rm -rf "$root"/etc/systemd/system "$root"/usr/lib/systemd/system/*.wants "$root"/etc/fstab \
        "$root"/usr/lib/systemd/system-generators "$root"/etc/systemd/system-generators \
        "$root"/etc/berth "$root"/var/lib/berth "$root"/var/log/journal "$root"/etc/.updated \
        "$root"/etc/machine-id "$root"/var/lib/dbus/machine-id "$root"/var/lib/systemd/coredump
    mkdir -p "$root"/etc/systemd/system "$root"/var/lib/berth "$root"/var/log/journal
    tr -d - </proc/sys/kernel/random/uuid >"$root"/etc/machine-id
    [ -z "$tree" ] || cp -dR --reflink=auto "$tree"/. "$root"/
    cp -dR "$dir"/guest/. "$root"/
    echo "$name" >"$root"/etc/hostname
fi

mount -o loop "$dir"/berth.ext4 "$root"/var/lib/berth
[ "$boot" != first ] || rmdir "$root"/var/lib/berth/lost+found

mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs "$root"/run
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root"/tmp
mount -t proc -o nosuid,nodev,noexec proc "$root"/proc
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root"/sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root"/sys/fs/cgroup

# Kernel settings are the host's: read-only, but with a boot id that is new with every boot of the guest.
mkdir "$root"/run/host
cat /proc/sys/kernel/random/uuid >"$root"/run/host/boot_id
chmod 444 "$root"/run/host/boot_id
mount --bind "$root"/proc/sys "$root"/proc/sys
mount -o remount,bind,ro "$root"/proc/sys
# Those of the network are the guest's own, as its network is: container engines forward packets in it.
mount --bind "$root"/proc/sys/net "$root"/proc/sys/net
mount -o remount,bind,rw "$root"/proc/sys/net
mount --bind "$root"/run/host/boot_id "$root"/proc/sys/kernel/random/boot_id
mount -o remount,bind,ro "$root"/proc/sys/kernel/random/boot_id
if [ -e "$root"/proc/sysrq-trigger ]; then
    mount --bind "$root"/proc/sysrq-trigger "$root"/proc/sysrq-trigger
    mount -o remount,bind,ro "$root"/proc/sysrq-trigger
fi

# Only devices that belong to nobody, and the GPUs where there are any.
mount -t tmpfs -o mode=0755,nosuid tmpfs "$root"/dev
mkdir "$root"/dev/pts "$root"/dev/shm "$root"/dev/mqueue
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5,nosuid,noexec devpts "$root"/dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root"/dev/shm
mount -t mqueue -o nosuid,nodev,noexec mqueue "$root"/dev/mqueue
mknod -m 666 "$root"/dev/null c 1 3
mknod -m 666 "$root"/dev/zero c 1 5
mknod -m 666 "$root"/dev/full c 1 7
mknod -m 666 "$root"/dev/random c 1 8
mknod -m 666 "$root"/dev/urandom c 1 9
mknod -m 666 "$root"/dev/tty c 5 0
chgrp tty "$root"/dev/tty
ln -s pts/ptmx "$root"/dev/ptmx
ln -s /proc/self/fd "$root"/dev/fd
ln -s /proc/self/fd/0 "$root"/dev/stdin
ln -s /proc/self/fd/1 "$root"/dev/stdout
ln -s /proc/self/fd/2 "$root"/dev/stderr
for gpu in /dev/nvidia* /dev/dri; do
    [ ! -e "$gpu" ] || cp -a "$gpu" "$root"/dev/
done

# The guest must not look into its own disk from below, nor into another sandbox's through this folder.
[ ! -d "$root$dir" ] || mount -t tmpfs -o mode=0,size=4k,ro tmpfs "$root$dir"

for bind in "$@"; do
    access=rw
    case $bind in *:ro) access=ro bind=${bind%:ro} ;; esac
    from=${bind%%:*} to=$root${bind#*:}
    if [ -d "$from" ]; then
        mkdir -p "$to"
    else
        mkdir -p "${to%/*}"
        [ -e "$to" ] || : >"$to"
    fi
    mount --rbind "$from" "$to"
    [ "$access" = rw ] || mount -o remount,bind,ro "$to"
done

mkdir "$root"/run/host/old
cd "$root"
pivot_root . run/host/old
umount -l /run/host/old
rmdir /run/host/old
# As many files as systemd allows its services, where the host lets us: its shell may have allowed fewer.
ulimit -Hn 524288 2>/dev/null || true
ulimit -Sn 1024
# systemd hands credentials to services through mounts that have to propagate.
mount --make-rshared /
# `container` keeps systemd's hands off what belongs to the host: its clock, swap, loop devices and consoles.
exec env -i container=berth-sandbox PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin LANG=C.UTF-8 \
    /lib/systemd/systemd --system --unit=sandbox.target
