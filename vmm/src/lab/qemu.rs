//! Each flag is here for a reason that was measured; `docs/lab.md` has the measurements.

use std::ffi::OsString;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

use super::payload::place;

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// The oldest QEMU that was measured, (major, minor).
pub const OLDEST: (u32, u32) = (7, 2);
/// Processor features that are switched off. `la57` costs a level of every page walk; QEMU's nested XSAVE is broken, so the
/// xsave family goes and guests use FXSAVE; `erms` makes page faults in long string instructions twice as dear.
const CPU: &str = "max,-la57,-xsave,-avx,-xsaveopt,-mpx,-pku,-erms";

/// The files that an emulated host boots from and hands to its cells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabImages {
    /// Compressed kernel, which the emulated host boots.
    pub bzimage: PathBuf,
    /// Initramfs with `ssivmm`.
    pub initramfs: PathBuf,
    /// ELF kernel, which cells boot.
    pub vmlinux: PathBuf,
    /// `root.erofs`.
    pub root: PathBuf,
    /// `tools.erofs`.
    pub tools: PathBuf,
}

/// One more read-only disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The last part of its path in the emulated host; letters.
    pub name: &'static str,
    /// The file.
    pub file: PathBuf,
}

/// A port of the machine that leads into the emulated host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Where the machine listens.
    pub host: SocketAddrV4,
    /// Port at 10.0.2.15 of the emulated host.
    pub guest: u16,
}

/// All that the command line depends on.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Images.
    pub images: &'a LabImages,
    /// More disks.
    pub disks: &'a [Disk],
    /// File with the payload.
    pub payload: &'a Path,
    /// File that gets the console's output.
    pub console: &'a Path,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors, 1 to 8.
    pub cpus: u32,
    /// Ports.
    pub forwards: &'a [Forward],
    /// The machine's time stamp counter, in kHz.
    pub tsc_khz: u64,
}

impl Machine<'_> {
    /// Arguments of QEMU.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: OsString| {
            args.push(name.into());
            args.push(value);
        };
        add("-M", "microvm,acpi=off,x-option-roms=off,isa-serial=on".into());
        add("-accel", "tcg,thread=multi".into());
        add("-cpu", CPU.into());
        add("-m", self.memory_mib.to_string().into());
        add("-smp", self.cpus.to_string().into());
        add("-kernel", self.images.bzimage.clone().into());
        add("-initrd", self.images.initramfs.clone().into());
        add("-append", self.kernel_command_line().into());
        add("-chardev", option("file,id=console,path=", self.console, ""));
        add("-serial", "chardev:console".into());
        add("-device", "virtio-rng-device".into());
        let always = [
            ("kernel", self.images.vmlinux.as_path()),
            ("root", &self.images.root),
            ("tools", &self.images.tools),
            ("payload", self.payload),
        ];
        let more = self.disks.iter().map(|disk| (disk.name, disk.file.as_path()));
        for (name, path) in always.into_iter().chain(more) {
            let rest = format!(",if=none,id={name},format=raw,readonly=on,file.locking=off");
            add("-drive", option("file=", path, &rest));
            add("-device", format!("virtio-blk-device,drive={name},serial=ssi-{name}").into());
        }
        let mut network = String::from("user,id=net,restrict=off");
        for Forward { host, guest } in self.forwards {
            network.push_str(&format!(
                ",hostfwd=tcp:{}:{}-{}:{guest}",
                host.ip(),
                host.port(),
                place::ADDRESS
            ));
        }
        add("-netdev", network.into());
        add("-device", "virtio-net-device,netdev=net".into());
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            args.push(flag.into());
        }
        args.push("-display".into());
        args.push("none".into());
        args
    }

    /// Without `tsc_early_khz` one boot in four ends with a frequency of 0; `reboot=t` (a triple fault) is the way to end a
    /// machine that has neither ACPI nor a keyboard controller. `exit_after_irq` keeps QEMU from delivering a guest's interrupt
    /// twice (`docs/lab.md`). A word that the kernel does not know becomes an argument of
    /// PID 1; there can be no `--`, because QEMU appends the places of its virtio devices.
    fn kernel_command_line(&self) -> String {
        format!(
            "console=ttyS0 quiet tsc_early_khz={} tsc=reliable reboot=t panic=-1 random.trust_cpu=on kvm_amd.exit_after_irq=1 rdinit=/init lab-init",
            self.tsc_khz
        )
    }
}

/// An option with a path in it; in QEMU's options a comma is written twice.
fn option(before: &str, path: &Path, after: &str) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = before.as_bytes().to_vec();
    for byte in path.as_os_str().as_bytes() {
        bytes.push(*byte);
        if *byte == b',' {
            bytes.push(b',');
        }
    }
    bytes.extend(after.as_bytes());
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images() -> LabImages {
        let path = |name: &str| PathBuf::from("/c").join(name);
        LabImages {
            bzimage: path("bzImage"),
            initramfs: path("initramfs"),
            vmlinux: path("vmlinux"),
            root: path("a,b.erofs"),
            tools: path("tools.erofs"),
        }
    }

    fn text(forwards: &[Forward], disks: &[Disk]) -> String {
        let images = images();
        let machine = Machine {
            images: &images,
            disks,
            payload: Path::new("/r/payload"),
            console: Path::new("/r/console.log"),
            memory_mib: 3000,
            cpus: 2,
            forwards,
            tsc_khz: 2_445_000,
        };
        machine.arguments().iter().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_flags_without_which_a_boot_fails_now_and_then_are_there() {
        let text = text(&[], &[]);
        for flag in [
            "-M microvm,acpi=off,x-option-roms=off,isa-serial=on",
            "-accel tcg,thread=multi",
            "-cpu max,-la57,-xsave,-avx,-xsaveopt,-mpx,-pku,-erms",
            "tsc_early_khz=2445000 tsc=reliable reboot=t",
            "kvm_amd.exit_after_irq=1",
            "-nodefaults -no-user-config -no-reboot",
        ] {
            assert!(text.contains(flag), "{flag} is not in {text}");
        }
    }

    #[test]
    fn images_are_read_only_and_a_comma_in_a_path_stays_in_the_path() {
        let text = text(&[], &[Disk { name: "boot", file: "/c/boot.erofs".into() }]);
        assert!(text.contains("file=/c/boot.erofs,if=none,id=boot,format=raw,readonly=on"), "{text}");
        assert!(text.contains("serial=ssi-boot"), "{text}");
        assert!(text.contains("file=/c/a,,b.erofs,if=none,id=root,format=raw,readonly=on"), "{text}");
        assert_eq!(text.matches("readonly=on").count(), 5);
    }

    #[test]
    fn a_published_port_listens_where_it_was_asked_to() {
        let host = "127.0.0.1:8080".parse().unwrap();
        let text = text(&[Forward { host, guest: 80 }], &[]);
        assert!(text.contains("hostfwd=tcp:127.0.0.1:8080-10.0.2.15:80"), "{text}");
    }
}
