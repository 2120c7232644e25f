#!/bin/sh
# Boots cells in an emulated host, for kernel developers on machines whose KVM cannot run a Linux guest.
#
#   tests/lab/dev-lab.sh --host BZIMAGE --kernel VMLINUX --initrd INITRD [options] [-- ARGS OF ssivmm dev-run]
#
#   --host BZIMAGE     kernel of the emulated host (L1); must have kvm-amd and the 8250 serial console built in
#   --kernel VMLINUX   kernel of the cells (L2): uncompressed ELF, or gzip of it
#   --initrd INITRD    initial RAM disk of the cells
#   --ssivmm BINARY    default: target/x86_64-unknown-linux-gnu/release/ssivmm of this tree
#   --time SECONDS     limit of the whole run, default 120
#   --host-memory MIB  default 3000
#   --input FILE       what is typed into cell 0's console; default: nothing. `-` for this script's standard input
#
# Cells' consoles come out on standard output, each line labelled `[N] `. What follows `--` goes to `ssivmm dev-run`,
# e.g. `-- --cells 2 --memory 256M --vcpus 2 --append "quiet"`.
# Exit status: that of dev-run; 124 when the time was over; 125 when the host died before dev-run ended.
set -eu

die() { echo "dev-lab: $*" >&2; exit 2; }

root=$(cd "$(dirname "$0")/../.." && pwd)
ssivmm=$root/target/x86_64-unknown-linux-gnu/release/ssivmm
host='' kernel='' initrd='' limit=120 host_memory=3000 input=/dev/null
while [ $# -gt 0 ]; do
    case $1 in
    --) shift; break ;;
    --host | --kernel | --initrd | --ssivmm | --time | --host-memory | --input)
        [ $# -ge 2 ] || die "$1 needs a value"
        case $1 in
        --host) host=$2 ;;
        --kernel) kernel=$2 ;;
        --initrd) initrd=$2 ;;
        --ssivmm) ssivmm=$2 ;;
        --time) limit=$2 ;;
        --host-memory) host_memory=$2 ;;
        --input) input=$2 ;;
        esac
        shift 2 ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) die "unknown option $1; --help lists them" ;;
    esac
done
[ -n "$host" ] && [ -n "$kernel" ] && [ -n "$initrd" ] || die "--host, --kernel and --initrd are needed; --help says more"
for file in "$host" "$kernel" "$initrd" "$ssivmm"; do
    [ -r "$file" ] || die "$file cannot be read"
done
for tool in qemu-system-x86_64 busybox cpio gzip timeout awk; do
    command -v $tool >/dev/null || die "$tool is missing: apt-get install qemu-system-x86 busybox-static cpio gzip coreutils mawk"
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
mkdir -p "$work/tree/bin" "$work/tree/proc" "$work/tree/sys" "$work/tree/dev" "$work/tree/tmp"
cp "$(command -v busybox)" "$work/tree/bin/busybox"
cp "$ssivmm" "$work/tree/bin/ssivmm"
if gzip -t "$kernel" 2>/dev/null; then gzip -dc "$kernel" >"$work/tree/vmlinux"; else cp "$kernel" "$work/tree/vmlinux"; fi
cp "$initrd" "$work/tree/initrd"
# A file travels with the host, which types none of it too early; standard input goes through the host's console.
[ "$input" = - ] || cat "$input" >"$work/tree/typed"
# Arguments travel one a line.
for argument in "$@"; do printf '%s\n' "$argument"; done >"$work/tree/arguments"
cat >"$work/tree/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled
/bin/busybox stty raw -echo opost onlcr 2>/dev/null
set --
while IFS= read -r argument; do set -- "$@" "$argument"; done </arguments
echo "dev-lab: host up after $(/bin/busybox cut -d' ' -f1 /proc/uptime) s"
typed=/typed
[ -e $typed ] || typed=/dev/console
# Processors 1 and 2: no guest may run on QEMU's first one (docs/lab.md).
/bin/busybox taskset 6 /bin/ssivmm dev-run --kernel /vmlinux --initrd /initrd "$@" <$typed
echo "dev-lab: exit $?"
/bin/busybox reboot -f
INIT
chmod +x "$work/tree/init"
(cd "$work/tree" && find . | cpio --quiet -o -H newc) >"$work/host.cpio"

khz=$(awk '/^cpu MHz/ { printf "%d", $4 * 1000; exit }' /proc/cpuinfo)
[ -n "$khz" ] || die "/proc/cpuinfo does not say the CPU's frequency"
run() {
    status=0
    timeout "$limit" qemu-system-x86_64 \
        -M microvm,acpi=off,x-option-roms=off,isa-serial=on -accel tcg,thread=multi \
        -cpu max,-la57,-xsave,-avx,-xsaveopt,-mpx,-pku,-erms \
        -m "$host_memory" -smp 3 -nodefaults -no-user-config -no-reboot -display none \
        -kernel "$host" -initrd "$work/host.cpio" -serial stdio \
        -append "console=ttyS0 quiet tsc_early_khz=$khz tsc=reliable kvm.halt_poll_ns=0 reboot=t panic=-1" || status=$?
    echo $status >"$work/status"
}
if [ "$input" = - ]; then run; else run </dev/null; fi | tee "$work/log"
status=$(cat "$work/status" 2>/dev/null || echo 1)
[ "$status" != 124 ] || { echo "dev-lab: time limit of $limit s reached" >&2; exit 124; }
ended=$(tr -d '\r' <"$work/log" | sed -n 's/^.*dev-lab: exit \([0-9]*\)$/\1/p' | tail -n 1)
[ -n "$ended" ] || { echo "dev-lab: the host ended before the cells did (QEMU status $status)" >&2; exit 125; }
exit "$ended"
