#!/bin/sh
# The guest kernel's own tests, with cells in one emulated host (tests/lab/dev-lab.sh): /proc/ssi/selftest, remote
# descriptors, and what the command line promises of PIDs and time.
#
#   guest-kernel/tests/two-cells.sh --host BZIMAGE --kernel VMLINUX [other options of dev-lab.sh] [-- ARGS OF dev-run]
#
# Exit status 0 if every part says PASS; else 1, and what was missing.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
for tool in cc busybox cpio gzip; do
    command -v $tool >/dev/null || { echo "two-cells: $tool is missing: apt-get install gcc libc6-dev busybox-static cpio gzip" >&2; exit 2; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
mkdir -p "$work/tree/bin" "$work/tree/proc" "$work/tree/sys" "$work/tree/dev"
cp "$(command -v busybox)" "$work/tree/bin/busybox"
cc -O1 -static -o "$work/tree/bin/rfile" "$root/guest-kernel/tests/rfile.c" -lutil
cat >"$work/tree/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts && mount -t devpts devpts /dev/pts
cell=$(cat /proc/ssi/cell)
child=$(sh -c 'echo $$')
[ $((child / 65536)) = "$cell" ] && [ $((child % 65536)) -ge 300 ] && echo "pid range: PASS" || echo "pid range: FAIL $child"
[ "$(cat /proc/sys/kernel/pid_max)" -ge $((65536 * $(wc -l </proc/ssi/cells))) ] && echo "pid_max: PASS" || echo "pid_max: FAIL"
while grep -q dead /proc/ssi/cells; do sleep 0.1; done
if [ "$cell" = 0 ]; then
    for test in "rpc 20" "run 200000 20" "clock 1" "ping 1 20"; do
        echo "$test" >/proc/ssi/selftest
        cat /proc/ssi/selftest
    done
    rfile home
else
    [ "$cell" != 1 ] || rfile away
    while ! grep -q dead /proc/ssi/cells; do sleep 0.2; done
fi
reboot -f
INIT
chmod +x "$work/tree/init"
(cd "$work/tree" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initrd"

dashes=
for argument in "$@"; do [ "$argument" != -- ] || dashes=yes; done
[ -n "$dashes" ] || set -- "$@" -- --cells 2 --memory 256M --vcpus 2 --append quiet
sh "$root/tests/lab/dev-lab.sh" --initrd "$work/initrd" "$@" | tee "$work/log" || true

missing=0
for line in '[0] pid range: PASS' '[1] pid range: PASS' '[0] pid_max: PASS' '[0] PASS rpc' '[0] PASS run' '[0] PASS clock' \
    '[0] PASS ping' '[0] rfile home: PASS' '[1] rfile away: PASS'; do
    grep -aqF "$line" "$work/log" || { echo "two-cells: not seen: $line" >&2; missing=1; }
done
[ $missing = 0 ] && echo "two-cells: PASS"
exit $missing
