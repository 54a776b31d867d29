# Waits until the process that owns a sandbox is gone, even by SIGKILL, and removes the sandbox then.
#
# Standard input is a pipe that only the owner holds open. An owner that removed the sandbox itself says so by
# a line.
#
# Arguments: the sandbox's cgroup, its folder, the names in that folder that are the sandbox's.
if read -r _; then exit 0; fi
if [ -e "$1/cgroup.kill" ]; then
    echo 1 >"$1/cgroup.kill"
    tries=0
    until grep -qs '^populated 0' "$1/cgroup.events" || [ $tries -ge 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    find "$1" -depth -type d -exec rmdir {} +
fi
folder=$2
shift 2
cd "$folder" && rm -rf --one-file-system -- "$@" && cd / && rmdir "$folder"
