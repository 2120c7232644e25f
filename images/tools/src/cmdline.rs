//! The kernel command line (`docs/interfaces.md`): what the VMM tells a cell.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};

/// The `ssi.` parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// `ssi.cell`: number of this cell.
    pub cell: u32,
    /// `ssi.name`: name of the cluster, and the host name of every cell.
    pub name: String,
    /// `ssi.ip`: the cluster's address and the length of its network prefix.
    pub ip: Option<(Ipv4Addr, u8)>,
    /// `ssi.gw`: the way out.
    pub gateway: Option<Ipv4Addr>,
}

impl Parameters {
    /// Those of the running kernel.
    ///
    /// # Errors
    /// If `/proc/cmdline` cannot be read, or a parameter is missing or malformed.
    pub fn of_this_kernel() -> Result<Self> {
        Self::parse(&std::fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline")?)
    }

    /// Reads a command line.
    ///
    /// # Errors
    /// If `ssi.cell` is missing, or a parameter is malformed.
    pub fn parse(line: &str) -> Result<Self> {
        let value = |key: &str| {
            line.split_ascii_whitespace().filter_map(|word| word.split_once('=')).find(|w| w.0 == key)
        };
        let Some((_, cell)) = value("ssi.cell") else { bail!("the kernel command line has no ssi.cell") };
        let ip = match value("ssi.ip") {
            None => None,
            Some((_, text)) => {
                let (address, prefix) = text.split_once('/').context("ssi.ip is not ADDRESS/PREFIX")?;
                let prefix: u8 =
                    prefix.parse().ok().filter(|p| *p <= 32).context("ssi.ip: bad prefix length")?;
                Some((address.parse().context("ssi.ip: bad address")?, prefix))
            }
        };
        Ok(Self {
            cell: cell.parse().context("ssi.cell is not a number")?,
            name: value("ssi.name").map_or("ssivmm", |v| v.1).to_owned(),
            ip,
            gateway: value("ssi.gw").map(|v| v.1.parse()).transpose().context("ssi.gw: bad address")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_read_as_documented() {
        let line =
            "console=ttyS0 ssi.cell=1 ssi.cells=2 ssi.name=demo ssi.ip=10.64.0.2/24 ssi.gw=10.64.0.1\n";
        let parameters = Parameters::parse(line).unwrap();
        assert_eq!(parameters.cell, 1);
        assert_eq!(parameters.name, "demo");
        assert_eq!(parameters.ip, Some((Ipv4Addr::new(10, 64, 0, 2), 24)));
        assert_eq!(parameters.gateway, Some(Ipv4Addr::new(10, 64, 0, 1)));
    }

    #[test]
    fn missing_or_malformed_parameters_are_named() {
        for (line, word) in [
            ("console=ttyS0", "ssi.cell"),
            ("ssi.cell=x", "ssi.cell"),
            ("ssi.cell=0 ssi.ip=10.64.0.2", "ADDRESS/PREFIX"),
            ("ssi.cell=0 ssi.ip=10.64.0.2/33", "prefix"),
            ("ssi.cell=0 ssi.gw=here", "ssi.gw"),
        ] {
            let error = format!("{:#}", Parameters::parse(line).unwrap_err());
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
