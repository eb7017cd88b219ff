"""What is run inside a guest. POSIX shell, so that any guest with the agent can run it.

    /run/conveyor/share                 the machine's directory on the host (9p): jobs, volumes, files on their way
    /run/conveyor/{ns,execs}/<task>     the mount namespace of a task, and the records of its execs
    /var/lib/conveyor/tasks/<task>      the workspace, on the guest's own disk
    /sys/fs/cgroup/conveyor/<task>/<job>

A *job* is one exec or the command of one container. It has a directory in the share: `stdin` is put there before,
`stdout`, `stderr` and at last `exit` are written by the guest, and `stop` tells it not to begin, or not to go on.
"""

from __future__ import annotations

__all__ = [
    "BOOT",
    "FENCE",
    "FREEZE",
    "JOB",
    "REMOVE",
    "SWEEP",
    "TASK",
    "USAGE",
    "WAKE",
]

BOOT = r"""
# Once, before a machine is frozen. Fails with a reason if the guest lacks what every task needs.
PATH=$PATH:/sbin:/usr/sbin:/bin:/usr/bin
for cv_tool in mount unshare nsenter setsid tar; do
  command -v "$cv_tool" > /dev/null || { echo "the guest has no $cv_tool" >&2; exit 1; }
done
mkdir -p /run/conveyor /var/lib/conveyor/tasks
if ! [ -d /run/conveyor/ns ]; then
  mount -t tmpfs -o mode=711 conveyor /run/conveyor || exit 1
  mount --make-private /run/conveyor
  mkdir -p /run/conveyor/ns /run/conveyor/execs /run/conveyor/share
  chmod 711 /run/conveyor/execs
fi
# The agent knows processes by number, keeps those that nobody asked about, and would take one for another.
echo 4194304 2> /dev/null > /proc/sys/kernel/pid_max
[ -e /sys/fs/cgroup/cgroup.controllers ] || { echo "the guest's kernel has no cgroup v2" >&2; exit 1; }
echo "+memory +pids +cpu" > /sys/fs/cgroup/cgroup.subtree_control
mkdir -p /sys/fs/cgroup/conveyor
echo "+memory +pids +cpu" > /sys/fs/cgroup/conveyor/cgroup.subtree_control
for cv_file in /sys/fs/cgroup /sys/fs/cgroup/conveyor; do
  echo +io 2> /dev/null > "$cv_file/cgroup.subtree_control"  # to be counted, where the kernel can
done
for cv_module in 9pnet_virtio 9p; do modprobe "$cv_module" 2> /dev/null; done
grep -q 9p /proc/filesystems || { echo "the guest's kernel has no 9p to share files by" >&2; exit 1; }
"""

WAKE = r"""
# Mounts what the host shares with the machine, if that is not done. It goes before TASK, in one script: the first
# program that a machine starts costs much, without an accelerator.
PATH=$PATH:/sbin:/usr/sbin:/bin:/usr/bin
if ! [ -e /run/conveyor/share/jobs ]; then
  for cv_file in /sys/bus/virtio/drivers/9pnet_virtio/virtio*/mount_tag; do
    read -r cv_tag < "$cv_file"  # drops the NUL that ends it, and misses a newline
    cv_place=/run/conveyor/host/$cv_tag
    if [ "$cv_tag" = share ]; then cv_place=/run/conveyor/share; else mkdir -p "$cv_place"; fi
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap "$cv_tag" "$cv_place" || exit 1
  done
fi
"""

TASK = r"""
# After WAKE. $1 task, $2 workdir, $3 user, $4 memory.max, $5 cpu.max, $6 pids.max, then for every mount: what (a
# directory, or tmpfs), its path inside, options.
cv_home=/var/lib/conveyor/tasks/$1 cv_group=/sys/fs/cgroup/conveyor/$1 cv_ns=/run/conveyor/ns/$1
if [ -d "$cv_group" ]; then
  # What is left of one that somebody began with and did not finish, or did not finish to remove.
  for cv_file in "$cv_group"/*/cgroup.procs; do
    while read -r cv_pid < "$cv_file"; do [ "$cv_pid" = 0 ] || kill -9 "$cv_pid"; done
  done 2> /dev/null
  rm -rf "$cv_home" "/run/conveyor/execs/$1"
fi
mkdir -p "$cv_home/workspace" "$cv_group" || exit 1
[ -d "/run/conveyor/execs/$1" ] || mkdir -m 1777 "/run/conveyor/execs/$1" || exit 1
case ${3%%:*} in ''|0|root) ;; *) chown "$3" "$cv_home/workspace" || exit 1;; esac
echo "+memory +pids +cpu" > "$cv_group/cgroup.subtree_control" || exit 1
echo "$4" > "$cv_group/memory.max" && echo "$5" > "$cv_group/cpu.max" && echo "$6" > "$cv_group/pids.max" || exit 1
[ ! -e "$cv_ns" ] || umount "$cv_ns" 2> /dev/null
: > "$cv_ns" || exit 1
cv_workdir=$2
shift 6
exec unshare "--mount=$cv_ns" sh -e -c '
  mkdir -p "$2"
  mount --bind "$1" "$2"
  shift 2
  while [ $# -gt 0 ]; do
    mkdir -p "$2"
    case $1 in
      tmpfs) mount -t tmpfs -o "$3" tmpfs "$2";;
      *) mount --bind "$1" "$2"; [ -z "$3" ] || mount -o "remount,bind,$3" "$2";;
    esac
    shift 3
  done
' sh "$cv_home/workspace" "$cv_workdir" "$@"
"""

JOB = r"""
# $1 task, $2 job, $3 user, $4 whether there is something to read, $5 seconds (0 = no limit), $6 tenths of a second
# from SIGTERM to SIGKILL then, $7 whether what it leaves running ends with it, then argv. It watches over the command
# from outside of its cgroup, so `exit` is written whatever becomes of that. Few programs are started: without an
# accelerator each one takes ten milliseconds.
exec 2> /dev/null > /dev/null < /dev/null
cv_path=$PATH PATH=/usr/sbin:/usr/bin:/sbin:/bin
cv_task=$1 cv_dir=/run/conveyor/share/jobs/$2 cv_group=/sys/fs/cgroup/conveyor/$1/$2
cv_user=$3 cv_stdin=$4 cv_limit=$5 cv_grace=$6 cv_whole=$7
shift 7
cv_refuse() { echo "conveyor: $1" > "$cv_dir/stderr"; echo "125 0" > "$cv_dir/exit"; exit 0; }
cv_program() { for cv_place in /usr/bin /bin /usr/sbin /sbin; do [ -x "$cv_place/$1" ] && break; done; }
cv_program nsenter; cv_nsenter=$cv_place/nsenter
cv_program setsid; cv_setsid=$cv_place/setsid
mkdir "$cv_group" || cv_refuse "the task $cv_task is not there"
cv_login=${cv_user%%:*} cv_uid= cv_gid= cv_home=/ cv_groups=--clear-groups
case $cv_user in
  ''|root|0) cv_uid=0 cv_gid=0 cv_home=/root;;
  *)
    while IFS=: read -r cv_name cv_x cv_u cv_g cv_x cv_h cv_x; do
      if [ "$cv_name" = "$cv_login" ] || [ "$cv_u" = "$cv_login" ]; then
        cv_uid=$cv_u cv_gid=$cv_g cv_home=$cv_h cv_groups=--init-groups; break
      fi
    done < /etc/passwd
    if [ -z "$cv_uid" ]; then
      case $cv_login in *[!0-9]*) cv_refuse "the guest has no user $cv_login";; esac
      cv_uid=$cv_login cv_gid=0
    fi
    case $cv_user in *:*) cv_gid=${cv_user#*:} cv_groups=--clear-groups;; esac;;
esac
[ -n "$HOME" ] || export HOME="$cv_home"
[ "$cv_uid:$cv_gid" = 0:0 ] || set -- /usr/bin/setpriv "--reuid=$cv_uid" "--regid=$cv_gid" "$cv_groups" "$@"
if [ "$cv_limit" != 0 ]; then
  setsid sh -c '
    sleep "$2"
    : > "$3/timeout"
    kill -15 $(grep -vx 0 "$1/cgroup.procs")
    while [ -n "$(cat "$1/cgroup.procs")" ]; do
      [ "$4" -gt 0 ] || kill -9 $(grep -vx 0 "$1/cgroup.procs")
      set -- "$1" "$2" "$3" $(($4 - 1)); sleep 0.1
    done
  ' sh "$cv_group" "$cv_limit" "$cv_dir" "$cv_grace" &
  cv_watch=$!
fi
(
  echo 0 > "$cv_group/cgroup.procs" || exit 125
  echo 0 > /proc/self/oom_score_adj
  [ ! -e "$cv_dir/stop" ] || exit 125
  [ -z "$cv_stdin" ] || exec < "$cv_dir/stdin"
  exec > "$cv_dir/stdout" 2> "$cv_dir/stderr"
  PATH=$cv_path
  exec "$cv_nsenter" "--mount=/run/conveyor/ns/$cv_task" "$cv_setsid" "$@"
)
cv_code=$? cv_oom=0
if [ "$cv_code" = 137 ]; then
  while read -r cv_key cv_value; do
    [ "$cv_key" = oom_kill ] && cv_oom=$cv_value
  done < "$cv_group/memory.events"
fi
if [ -n "$cv_watch" ]; then
  if [ -e "$cv_dir/timeout" ]; then wait "$cv_watch"; else kill -9 "-$cv_watch"; fi
fi
while [ -n "$cv_whole" ] && read -r cv_pid < "$cv_group/cgroup.procs"; do
  echo 1 > "$cv_group/cgroup.kill" || [ "$cv_pid" = 0 ] || kill -9 "$cv_pid"
done
echo "$cv_code $cv_oom" > "$cv_dir/exit"
rmdir "$cv_group"
"""

SWEEP = r"""
# $1 signal (0 = none), then names of jobs or tasks: signals every process in them, and prints it with the name.
# A process that has just ended is listed as 0, and to signal 0 would be to signal the agent and all it started.
cv_signal=$1; shift
for cv_name; do
  for cv_file in "/sys/fs/cgroup/conveyor/$cv_name/cgroup.procs" "/sys/fs/cgroup/conveyor/$cv_name"/*/cgroup.procs; do
    [ -r "$cv_file" ] || continue
    while read -r cv_pid; do
      [ "$cv_pid" != 0 ] || continue
      [ "$cv_signal" = 0 ] || kill "-$cv_signal" "$cv_pid" 2> /dev/null
      echo "$cv_name $cv_pid"
    done < "$cv_file"
    [ "$cv_signal" != 9 ] || echo 1 2> /dev/null > "${cv_file%procs}kill"
  done
done
exit 0
"""

FENCE = r"""
# $1 task, $2 fence: puts it up and prints the names of all records.
: > "/run/conveyor/execs/$1/$2" || exit 1
cd "/run/conveyor/execs/$1" || exit 1
for cv_file in *; do echo "$cv_file"; done
"""

REMOVE = r"""
# $1 task: removes what is left of one whose processes have ended. Prints them, and removes nothing, while there are.
for cv_file in "/sys/fs/cgroup/conveyor/$1"/*/cgroup.procs; do
  while read -r cv_pid; do echo "$cv_pid"; cv_busy=yes; done < "$cv_file"
done 2> /dev/null
[ -z "$cv_busy" ] || exit 0
umount "/run/conveyor/ns/$1" 2> /dev/null
rm -rf "/run/conveyor/ns/$1" "/run/conveyor/execs/$1" "/var/lib/conveyor/tasks/$1"
rmdir "/sys/fs/cgroup/conveyor/$1"/*/ "/sys/fs/cgroup/conveyor/$1" 2> /dev/null
exit 0
"""

FREEZE = r"""
# $1 task, $2 1 or 0: halts all its processes, or lets them go on; returns when that is so.
cv_group=/sys/fs/cgroup/conveyor/$1
echo "$2" > "$cv_group/cgroup.freeze" || exit 1
while ! grep -q "frozen $2" "$cv_group/cgroup.events"; do usleep 10000 2> /dev/null || sleep 0.01; done
"""

USAGE = r"""
# $1 task. Prints microseconds of processor, bytes of memory, of droppable cache and at most, processes, bytes read and
# written by the disk and received and sent by the network.
cd "/sys/fs/cgroup/conveyor/$1" || exit 1
cv_cpu=0 cv_cache=0 cv_read=0 cv_written=0 cv_in=0 cv_out=0
while read -r cv_key cv_value; do [ "$cv_key" = usage_usec ] && cv_cpu=$cv_value; done < cpu.stat
while read -r cv_key cv_value; do [ "$cv_key" = inactive_file ] && cv_cache=$cv_value; done < memory.stat
read -r cv_memory < memory.current
read -r cv_limit < memory.max
read -r cv_pids < pids.current
if [ -r io.stat ]; then
  while read -r cv_line; do
    for cv_word in $cv_line; do
      case $cv_word in
        rbytes=*) cv_read=$((cv_read + ${cv_word#*=}));;
        wbytes=*) cv_written=$((cv_written + ${cv_word#*=}));;
      esac
    done
  done < io.stat
fi
for cv_card in /sys/class/net/*/statistics; do
  case $cv_card in */lo/*) continue;; esac
  read -r cv_value < "$cv_card/rx_bytes" && cv_in=$((cv_in + cv_value))
  read -r cv_value < "$cv_card/tx_bytes" && cv_out=$((cv_out + cv_value))
done
[ "$cv_limit" != max ] || cv_limit=0
echo "$cv_cpu $cv_memory $cv_cache $cv_limit $cv_pids $cv_read $cv_written $cv_in $cv_out"
"""
