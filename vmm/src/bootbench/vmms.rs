use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Memory of a guest in MiB, and what of it a cell has as its slice; the rest is its private low RAM.
pub const MEMORY_MIB: u32 = 512;
const SLICE_MIB: u32 = 384;
/// The words of the kernel's command line that both get: `dev-run` puts the others in front of what it is given.
const BOTH: &str = "console=ttyS0 panic=-1 iommu=off quiet";

/// What boots the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vmm {
    /// Ours.
    Ssivmm,
    /// The yardstick.
    Qemu,
}

impl Vmm {
    /// Both, in the order of the table.
    pub const BOTH: [Self; 2] = [Self::Ssivmm, Self::Qemu];

    /// Its name, for a person.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ssivmm => "ssivmm",
            Self::Qemu => "qemu",
        }
    }
}

/// In which format QEMU gets the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelFormat {
    /// The ELF file that cells boot, entered through PVH.
    Pvh,
    /// The compressed kernel: the ELF file has no PVH entry.
    BzImage,
}

impl KernelFormat {
    /// What `vmm` loads, for a person.
    pub fn describe(self, vmm: Vmm) -> &'static str {
        match (vmm, self) {
            (Vmm::Ssivmm, _) => "ELF, 64-bit entry",
            (Vmm::Qemu, Self::Pvh) => "ELF, PVH entry",
            (Vmm::Qemu, Self::BzImage) => "bzImage (no PVH entry)",
        }
    }
}

/// Who boots what.
#[derive(Debug, Clone)]
pub struct Contest {
    /// Ours.
    pub ssivmm: PathBuf,
    /// QEMU and its first arguments; where its libraries are elsewhere, the loader comes before it.
    pub qemu: Vec<OsString>,
    /// The ELF kernel.
    pub vmlinux: PathBuf,
    /// What QEMU loads: the same file, or the bzImage.
    pub qemu_kernel: PathBuf,
    /// The root.
    pub initramfs: PathBuf,
    /// A processor that neither may run on, if there is another.
    pub avoid_cpu: Option<usize>,
}

impl Contest {
    /// Program and arguments of a boot.
    pub fn command(&self, vmm: Vmm) -> Vec<OsString> {
        match vmm {
            Vmm::Ssivmm => self.ssivmm_command(),
            Vmm::Qemu => self.qemu_command(),
        }
    }

    /// One cell; there is no other, so no page of it is ever anywhere else.
    fn ssivmm_command(&self) -> Vec<OsString> {
        let slice = format!("{SLICE_MIB}M");
        let low = format!("{}M", MEMORY_MIB - SLICE_MIB);
        let mut args: Vec<OsString> = vec![self.ssivmm.clone().into()];
        args.extend(
            ["dev-run", "--cells", "1", "--vcpus", "1", "--memory", &slice, "--low", &low].map(Into::into),
        );
        args.extend(["--append".into(), "quiet".into()]);
        args.extend(["--kernel".into(), self.vmlinux.clone().into()]);
        args.extend(["--initrd".into(), self.initramfs.clone().into()]);
        args
    }

    /// The leanest machine that QEMU has. It has no keyboard controller: its way out is a triple fault (`reboot=t`).
    fn qemu_command(&self) -> Vec<OsString> {
        let memory = MEMORY_MIB.to_string();
        let mut args = self.qemu.clone();
        args.extend(["-M", "microvm,acpi=off,x-option-roms=off,isa-serial=on"].map(Into::into));
        args.extend(["-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", &memory].map(Into::into));
        args.extend(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"].map(Into::into));
        args.extend(["-serial", "stdio"].map(Into::into));
        args.extend(["-kernel".into(), self.qemu_kernel.clone().into()]);
        args.extend(["-initrd".into(), self.initramfs.clone().into()]);
        args.extend(["-append".into(), format!("{BOTH} reboot=t").into()]);
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    use crate::machine::devrun::DevRunArgs;

    fn contest() -> Contest {
        Contest {
            ssivmm: "/p/ssivmm".into(),
            qemu: vec!["/p/loader".into(), "/p/qemu".into()],
            vmlinux: "/k/vmlinux".into(),
            qemu_kernel: "/k/bzImage".into(),
            initramfs: "/k/boot.cpio".into(),
            avoid_cpu: None,
        }
    }

    #[derive(Debug, Parser)]
    struct DevRun {
        #[command(flatten)]
        _args: DevRunArgs,
    }

    #[test]
    fn dev_run_understands_what_it_is_given() {
        let command = contest().command(Vmm::Ssivmm);
        assert_eq!((command[0].to_str(), command[1].to_str()), (Some("/p/ssivmm"), Some("dev-run")));
        DevRun::try_parse_from(&command[1..]).unwrap();
    }

    #[test]
    fn both_guests_have_the_same_initramfs_memory_and_number_of_processors() {
        let text = |vmm| {
            let words: Vec<String> =
                contest().command(vmm).iter().map(|word| word.to_string_lossy().into_owned()).collect();
            words.join(" ")
        };
        let (ours, qemu) = (text(Vmm::Ssivmm), text(Vmm::Qemu));
        assert!(ours.contains("--memory 384M --low 128M") && qemu.contains("-m 512"), "{ours}; {qemu}");
        assert!(ours.contains("--cells 1 --vcpus 1") && qemu.contains("-smp 1"), "{ours}; {qemu}");
        assert!(ours.ends_with("--initrd /k/boot.cpio") && qemu.contains("-initrd /k/boot.cpio"));
        assert!(ours.contains("--kernel /k/vmlinux") && qemu.contains("-kernel /k/bzImage"));
    }

    #[test]
    fn qemu_is_a_microvm_on_kvm_that_ends_when_the_guest_resets() {
        let command = contest().command(Vmm::Qemu);
        assert_eq!(command[..2], contest().qemu[..], "the loader comes first");
        for word in
            ["microvm,acpi=off,x-option-roms=off,isa-serial=on", "kvm", "host", "-no-reboot", "-nodefaults"]
        {
            assert!(command.iter().any(|given| given == word), "{word} is not in {command:?}");
        }
        let append = command.last().and_then(|word| word.to_str()).unwrap_or_default();
        assert!(append.contains("console=ttyS0") && append.contains("reboot=t"), "{append}");
    }
}
