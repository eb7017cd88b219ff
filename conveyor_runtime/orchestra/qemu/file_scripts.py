"""What is run inside a guest to move files: see `scripts`."""

from __future__ import annotations

__all__ = ["PACK", "UNPACK", "WAYS"]

UNPACK = r"""
# $1 archive, $2 directory, $3 user: unpacks it there.
cd "$2" && tar -x -f "$1" || exit 1
case ${3%%:*} in ''|0|root) ;; *) chown -R "$3" .;; esac
"""

PACK = r"""
# After WAKE. $1 archive, $2 directory, then what of it.
cv_archive=$1
cd "$2" && shift 2 && tar -c -f "$cv_archive" "$@"
"""

WAYS = r"""
# After WAKE. $1 directory, then pairs: `way` and a path that no link may lead out of it, or `there` and one that must
# be there.
cv_root=$1
cd -P "$cv_root" || exit 44
shift
while [ $# -gt 0 ]; do
  case $1 in
    way)
      if [ -L "./$2" ]; then
        cd -P "./$2" 2> /dev/null || { echo "$2 is a link to nothing" >&2; exit 43; }
        case $PWD/ in "$cv_root"/*) ;; *) echo "$2 leads out" >&2; exit 43;; esac
        cd "$cv_root" || exit 1
      fi;;
    *) [ -e "./$2" ] || [ -L "./$2" ] || { echo "$2 is not there" >&2; exit 44; };;
  esac
  shift 2
done
"""
