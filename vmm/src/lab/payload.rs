use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use crate::bootbench::KernelFormat;
use crate::launch::ClusterSpec;

/// The block device's first bytes.
const MAGIC: [u8; 8] = *b"SSILAB01";
/// The largest payload, in bytes.
const PAYLOAD_MAX: u64 = 1 << 20;
/// Block devices come in sectors, in bytes.
const SECTOR: usize = 512;

/// What the work says of each boot of [`Work::Boot`] begins with this; the rest is the boot, as JSON.
pub const BOOTED: &str = "booted ";

/// Where things are inside the emulated host.
pub mod place {
    /// Links to the block devices, named after their serial numbers.
    pub const DISKS: &str = "/dev/ssi-images";
    /// The cells' kernel (ELF), a block device.
    pub const KERNEL: &str = "/dev/ssi-images/kernel";
    /// The root image, a block device (erofs).
    pub const ROOT: &str = "/dev/ssi-images/root";
    /// The tools image, a block device (erofs).
    pub const TOOLS: &str = "/dev/ssi-images/tools";
    /// What the boot benchmark needs: initramfs and QEMU (erofs), a block device; there only for that work.
    pub const BOOT: &str = "/dev/ssi-images/boot";
    /// The compressed kernel, a block device; there only for the boot benchmark, if QEMU needs it.
    pub const BZIMAGE: &str = "/dev/ssi-images/bzimage";
    /// The payload, a block device.
    pub const PAYLOAD: &str = "/dev/ssi-images/payload";
    /// The cluster's secret: a file, mode 0600, that PID 1 writes.
    pub const SECRET: &str = "/run/ssi/secret";
    /// The work, as JSON: a file, mode 0600, that PID 1 writes.
    pub const WORK: &str = "/run/ssi/work.json";
    /// Why the work failed, in one line: a file that `lab-run` writes for PID 1 to say.
    pub const FAILURE: &str = "/run/ssi/failure";
    /// A folder for the launcher's state (sockets, logs), mode 0700.
    pub const STATE: &str = "/run/ssi/state";
    /// The emulated host's address in QEMU's user network; forwarded ports arrive here.
    pub const ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 0, 2, 15);
    /// QEMU's user network: the gateway.
    pub const GATEWAY: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 0, 2, 2);
}

/// What an emulated host is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Work {
    /// Start a cluster.
    Cluster {
        /// Its description, whose paths are those of [`place`].
        spec: Box<ClusterSpec>,
        /// Cells' agents answer within this many seconds.
        ready_within_s: u64,
    },
    /// Boot cells and QEMU's microvm in turn, and say how long each boot took (`bench boot`).
    Boot {
        /// How often each, and once more to warm up.
        rounds: u32,
        /// How QEMU gets the kernel.
        format: KernelFormat,
    },
    /// Run a program in a writable root over the images, its output on the console (tests, and a look around).
    Run {
        /// Program and arguments.
        argv: Vec<String>,
    },
}

/// What travels into an emulated host, on a block device of its own: its secret is on no command line.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payload {
    /// What to do.
    pub work: Work,
    /// The cluster's secret; written to [`place::SECRET`].
    pub secret: Vec<u8>,
    /// The time, in nanoseconds since 1970: the emulated host has no clock of its own.
    pub realtime_ns: u64,
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Payload").field("work", &self.work).field("secret", &"..").finish_non_exhaustive()
    }
}

impl Payload {
    /// The content of the block device: magic, length, JSON, zeros up to a whole sector.
    ///
    /// # Errors
    /// If it is larger than 1 MiB.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let json = serde_json::to_vec(self)?;
        if json.len() as u64 > PAYLOAD_MAX {
            return Err(io::Error::other(format!("the lab's payload is too large: {} bytes", json.len())));
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend((json.len() as u64).to_le_bytes());
        bytes.extend(json);
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        Ok(bytes)
    }

    /// Reads it back.
    ///
    /// # Errors
    /// If it is not a payload of this version.
    pub fn read(mut from: impl Read) -> io::Result<Self> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let mut header = [0; 16];
        from.read_exact(&mut header)?;
        let (magic, length) = header.split_at(8);
        if magic != MAGIC {
            return Err(invalid("not a lab payload of this version of ssivmm".to_owned()));
        }
        let length = u64::from_le_bytes(length.try_into().map_err(|_| invalid("no length".to_owned()))?);
        if length > PAYLOAD_MAX {
            return Err(invalid(format!("a lab payload of {length} bytes")));
        }
        let mut json = Vec::new();
        from.take(length).read_to_end(&mut json)?;
        Ok(serde_json::from_slice(&json)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload() -> Payload {
        Payload { work: Work::Run { argv: vec!["true".into()] }, secret: vec![1, 2, 3], realtime_ns: 7 }
    }

    #[test]
    fn a_payload_is_read_back_from_whole_sectors() {
        let bytes = payload().to_bytes().unwrap();
        assert_eq!(bytes.len() % SECTOR, 0);
        assert_eq!(Payload::read(bytes.as_slice()).unwrap(), payload());
    }

    #[test]
    fn a_foreign_truncated_or_huge_payload_is_refused() {
        let good = payload().to_bytes().unwrap();
        let mut foreign = good.clone();
        foreign[0] = b'X';
        let mut huge = good.clone();
        huge[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        for bytes in [&foreign[..], &huge[..], &good[..10], &good[..20], &[]] {
            assert!(Payload::read(bytes).is_err());
        }
    }

    #[test]
    fn the_secret_is_not_in_the_debug_output() {
        let text = format!("{:?}", Payload { secret: vec![201, 202], ..payload() });
        assert!(!text.contains("201"), "{text}");
    }
}
