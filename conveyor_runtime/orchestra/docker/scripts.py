"""What is run inside containers to look after them. Shell builtins as far as possible: images differ."""

from __future__ import annotations

__all__ = ["LIST", "OWN", "SWEEP"]

SWEEP = r"""
# $1 signal (0 = none), $2 directory of records, then the nonces of execs; without any: all execs.
# Signals and prints every living process of theirs: the session and group of the leader in the record, who carries
# the nonce in the environment, and the descendants of all these.
cv_signal=$1 cv_records=$2; shift 2
cv_split() { cv_state=$1 cv_parent=$2 cv_group=$3 cv_session=$4; shift 19; cv_start=$1; }
cv_look() {
  { read -r cv_stat < "/proc/$1/stat"; } 2>/dev/null || return 1
  cv_split ${cv_stat##*) }
  case $cv_state in Z|X) return 1;; esac
}
cv_leaders=' '
for cv_nonce; do
  for cv_file in "$cv_records"/*."$cv_nonce"; do
    cv_rest=${cv_file%.*}; cv_noted=${cv_rest##*.}; cv_rest=${cv_rest%.*}; cv_pid=${cv_rest##*.}
    cv_look "$cv_pid" && [ "$cv_start" = "$cv_noted" ] && cv_leaders="$cv_leaders$cv_pid "
  done
done
cv_marked() {
  cv_of=$1; shift
  { while read -r cv_line || [ -n "$cv_line" ]; do
      for cv_nonce; do
        case $cv_line in *"CONVEYOR_EXEC=$cv_nonce"*) return 0;; esac
      done
    done < "/proc/$cv_of/environ"; } 2>/dev/null
  return 1
}
cv_hits=' ' cv_table=
for cv_dir in /proc/[0-9]*; do
  cv_pid=${cv_dir#/proc/}
  [ "$cv_pid" = "$$" ] && continue
  cv_look "$cv_pid" || continue
  cv_table="$cv_table $cv_pid:$cv_parent"
  if [ $# -eq 0 ]; then
    # The container's own process and its init are session 1; every exec has another.
    [ "$cv_session" = 1 ] || cv_hits="$cv_hits$cv_pid "
    continue
  fi
  case $cv_leaders in
    *" $cv_pid "*|*" $cv_group "*|*" $cv_session "*) cv_hits="$cv_hits$cv_pid ";;
    *) cv_marked "$cv_pid" "$@" && cv_hits="$cv_hits$cv_pid ";;
  esac
done
cv_more=1
while [ -n "$cv_more" ]; do
  cv_more=
  for cv_pair in $cv_table; do
    case $cv_hits in *" ${cv_pair%:*} "*) continue;; esac
    case $cv_hits in *" ${cv_pair#*:} "*) cv_hits="$cv_hits${cv_pair%:*} "; cv_more=1;; esac
  done
done
for cv_pid in $cv_hits; do
  [ "$cv_signal" = 0 ] || kill "-$cv_signal" "$cv_pid" 2>/dev/null
  echo "$cv_pid"
done
exit 0
"""

LIST = r"""
# $1 directory of records, $2 name of a fence to put up first, if any. Prints how many processes of this container
# ran out of memory so far, then each record: its name and what it noted.
[ -z "$2" ] || : > "$1/$2" || exit 1
cv_oom=0
for cv_file in /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control; do
  [ -r "$cv_file" ] || continue
  while read -r cv_key cv_value; do
    [ "$cv_key" = oom_kill ] && cv_oom=$cv_value
  done < "$cv_file"
done
echo "$cv_oom"
for cv_file in "$1"/*; do
  cv_note=
  [ -f "$cv_file" ] && read -r cv_note < "$cv_file"
  echo "${cv_file##*/} $cv_note"
done
exit 0
"""

OWN = r"""
# $1 user, $2 path: gives it the whole tree, which is root's.
case ${1%%:*} in 0|root) ;; *) chown -R "$1" "$2";; esac
"""
