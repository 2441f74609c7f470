# The first process of a pod, in namespaces of its own: makes the root file system, and becomes the container's command.
# ROOT: an empty folder. VOLUMES: lines of "path<TAB>source" (a folder) or "path<TAB>tmpfs:BYTES". CODE: lines of folders
# that the image would have. JOBS: the folder of the jobs. POD_ETC: passwd, group and hosts. POD_USER, READ_ONLY_ROOT.
set -euo pipefail
mount --make-rprivate /
mount -t tmpfs -o mode=755,size=64m tmpfs "$ROOT"
for name in bin sbin lib lib32 lib64; do
  [ ! -L "/$name" ] || cp -P "/$name" "$ROOT/$name"
done
bind() {
  mkdir -p "$ROOT$2"
  mount --bind "$1" "$ROOT$2"
  mount -o "remount,bind,$3" "$ROOT$2"
}
for name in usr bin sbin lib lib32 lib64; do
  { [ -L "/$name" ] || [ ! -d "/$name" ]; } || bind "/$name" "/$name" ro
done
while read -r folder; do
  case "$folder" in /usr/*) ;; *) bind "$folder" "$folder" ro ;; esac
done <<< "$CODE"
bind "$JOBS" /opt/warren/jobs ro
mkdir -p "$ROOT/etc" "$ROOT/proc" "$ROOT/dev" "$ROOT/sys"
for name in ld.so.cache ld.so.conf ld.so.conf.d nsswitch.conf localtime ssl alternatives mime.types; do
  [ ! -e "/etc/$name" ] || cp -a "/etc/$name" "$ROOT/etc/"
done
cp "$POD_ETC"/* "$ROOT/etc/"
mount -t proc proc "$ROOT/proc"
mount -t sysfs -o ro sysfs "$ROOT/sys"
mount --bind /dev "$ROOT/dev"
while IFS=$'\t' read -r path source; do
  mkdir -p "$ROOT$path"
  case "$source" in
    tmpfs:*) mount -t tmpfs -o "mode=1777,size=${source#tmpfs:}" tmpfs "$ROOT$path" ;;
    *) mount --bind "$source" "$ROOT$path" ;;
  esac
done <<< "$VOLUMES"
[ "$READ_ONLY_ROOT" = no ] || mount -o remount,ro "$ROOT"
user=$POD_USER directory=$WORKING_DIR root=$ROOT
unset ROOT VOLUMES CODE JOBS POD_ETC POD_USER READ_ONLY_ROOT WORKING_DIR
# A change of user clears the signal that unshare's --kill-child has set, so it is set again.
exec chroot "$root" setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs --bounding-set=-all \
  --inh-caps=-all --pdeathsig KILL -- env -C "$directory" "$@"
