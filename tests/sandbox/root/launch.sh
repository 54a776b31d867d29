# Runs on the host: enters the sandbox's own cgroup and becomes the parent of its PID 1.
#
#   BASE            a cgroup that only this sandbox uses
#   ├── guest       the root of the cgroup tree that the guest sees
#   │   └── sandbox-exec   what `sandbox exec` runs, so that no service's cgroup holds it
#   └── holder      where `unshare` waits: a foreign process in the guest's root would forbid systemd there
#                   to hand controllers on
#
# Arguments: BASE, then the program to run as the guest's PID 1.
set -eu
base=$1
shift
mkdir -p "$base/guest" "$base/holder"
echo 0 >"$base/guest/cgroup.procs"
for controller in $(cat "$base/cgroup.controllers"); do
    # Best effort: a controller that is bound to the v1 hierarchy or not delegated stays away.
    echo "+$controller" 2>/dev/null >"$base/cgroup.subtree_control" || true
done
exec unshare --mount --pid --fork --uts --ipc --cgroup --net --kill-child -- "$@"
