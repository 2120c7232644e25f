//! What is kept of each cluster, between one command and the next.
//!
//! ```text
//! <state>/clusters/NAME.lock          held by `up` and `down` while they work
//! <state>/clusters/NAME/cluster.json  written last by `up`: with it, the cluster is up
//!                       secret        mode 0600
//!                       run/          sockets and logs of the processes, or of the emulated host
//! <state>/last/NAME/                  logs of a cluster that is down
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use ssi_proto::request::Request;

use super::{Fail, exit};
use crate::control::{Client, ClientError};
use crate::fabric::Secret;
use crate::launch::spec::check_name;
use crate::launch::{Address, ClusterSpec, ProcessRecord};

/// Name of a cluster that was given none.
pub const DEFAULT_NAME: &str = "default";

/// A cluster that is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this file.
    pub version: u32,
    /// Where its controller listens, as this machine reaches it.
    pub control: Address,
    /// Its processes on this machine.
    pub processes: Vec<ProcessRecord>,
    /// Its description, with the paths of the machine where the launcher ran.
    pub spec: ClusterSpec,
    /// When it was up, in seconds since 1970.
    pub since_unix_s: u64,
}

impl Record {
    /// The version that this program writes.
    pub const VERSION: u32 = 1;

    /// Does any of its processes run?
    pub fn is_running(&self) -> bool {
        self.processes.iter().any(ProcessRecord::is_running)
    }
}

/// The directory of all clusters.
#[derive(Debug, Clone)]
pub struct State {
    root: PathBuf,
}

impl State {
    /// As the environment says.
    ///
    /// # Errors
    /// If there is neither `$SSIVMM_STATE` nor `$XDG_STATE_HOME` nor `$HOME`.
    pub fn open() -> Result<Self, Fail> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = variable("SSIVMM_STATE")
            .or_else(|| variable("XDG_STATE_HOME").map(|dir| dir.join("ssivmm")))
            .or_else(|| variable("HOME").map(|dir| dir.join(".local/state/ssivmm")));
        match root {
            Some(root) => Ok(Self { root: std::path::absolute(root)? }),
            None => Err(Fail::new(exit::FAILED, "neither HOME nor SSIVMM_STATE is set: no place for state")),
        }
    }

    /// In the directory `root`.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn clusters(&self) -> PathBuf {
        self.root.join("clusters")
    }

    /// The cluster `name`, which need not exist.
    ///
    /// # Errors
    /// If this is no name.
    pub fn cluster(&self, name: &str) -> Result<ClusterDir, Fail> {
        check_name(name).map_err(|error| Fail::new(exit::USAGE, error.to_string()))?;
        let clusters = self.clusters();
        Ok(ClusterDir { name: name.to_owned(), path: clusters.join(name), root: self.root.clone() })
    }

    /// Names of the clusters that are up, or were when the machine lost its power.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.clusters()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            if let Some(name) = entry.file_name().to_str()
                && entry.path().join("cluster.json").exists()
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// The cluster that is meant: the one that is named, the only one, or the one that is called `default`.
    ///
    /// # Errors
    /// If it does not exist, or it is not clear which is meant.
    pub fn existing(&self, name: Option<&str>) -> Result<(ClusterDir, Record), Fail> {
        let names = self.names()?;
        let name = match (name, names.as_slice()) {
            (Some(name), _) => name.to_owned(),
            (None, []) => {
                return Err(Fail::new(exit::NO_CLUSTER, "no cluster is up; `ssivmm up` starts one"));
            }
            (None, [only]) => only.clone(),
            (None, many) if many.iter().any(|name| name == DEFAULT_NAME) => DEFAULT_NAME.to_owned(),
            (None, many) => {
                let all = many.join(", ");
                return Err(Fail::new(
                    exit::USAGE,
                    format!("several clusters are up ({all}): say which with --cluster"),
                ));
            }
        };
        let dir = self.cluster(&name)?;
        match dir.record()? {
            Some(record) => Ok((dir, record)),
            None if names.is_empty() => {
                Err(Fail::new(exit::NO_CLUSTER, format!("there is no cluster {name}; none is up")))
            }
            None => {
                let all = names.join(", ");
                Err(Fail::new(exit::NO_CLUSTER, format!("there is no cluster {name}; there is {all}")))
            }
        }
    }

    /// A session with the controller of the cluster that is meant.
    ///
    /// # Errors
    /// If there is none, or it does not answer.
    pub fn session(&self, name: Option<&str>) -> Result<(Client, Record), Fail> {
        let (dir, record) = self.existing(name)?;
        let secret = Secret::load(&dir.secret())?;
        match Client::connect(&record.control, &dir.name, &secret) {
            Ok(client) => Ok((client, record)),
            Err(ClientError::Unreachable { .. }) if !record.is_running() => Err(Fail::new(
                exit::NO_CLUSTER,
                format!(
                    "cluster {} has ended by itself; `ssivmm down` tidies up, logs are in {}",
                    dir.name,
                    dir.run().display()
                ),
            )),
            Err(error) => Err(error.into()),
        }
    }
}

/// Asks the controller of the cluster that is meant for a record.
///
/// # Errors
/// As [`State::session`]; the refusal of the controller, with its exit status.
pub fn ask<T: serde::de::DeserializeOwned>(cluster: Option<&str>, request: &Request) -> Result<T, Fail> {
    let (client, _) = State::open()?.session(cluster)?;
    client.ask(request).map_err(refusal)
}

/// The exit status that belongs to a refusal.
pub fn refusal(error: ClientError) -> Fail {
    let status = match &error {
        ClientError::Refused { code: Some(code), .. }
            if matches!(code.as_str(), "ESRCH" | "ENODEV" | "EHOSTUNREACH") =>
        {
            exit::NOT_THERE
        }
        _ => exit::FAILED,
    };
    Fail::new(status, error.to_string())
}

/// The directory of one cluster.
#[derive(Debug, Clone)]
pub struct ClusterDir {
    /// The cluster's name.
    pub name: String,
    path: PathBuf,
    root: PathBuf,
}

/// Held while a cluster is started or stopped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not read")] Flock<File>);

impl ClusterDir {
    /// The file with its secret.
    pub fn secret(&self) -> PathBuf {
        self.path.join("secret")
    }

    /// The directory of its processes.
    pub fn run(&self) -> PathBuf {
        self.path.join("run")
    }

    /// Nobody else starts or stops this cluster while the lock is held.
    ///
    /// # Errors
    /// If somebody does.
    pub fn lock(&self) -> Result<Lock, Fail> {
        let clusters = self.root.join("clusters");
        DirBuilder::new().recursive(true).mode(0o700).create(&clusters)?;
        let path = clusters.join(format!("{}.lock", self.name));
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Lock(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(Fail::new(
                exit::NAME_IN_USE,
                format!("another command is just starting or stopping cluster {}; wait for it", self.name),
            )),
            Err((_, error)) => Err(error.into()),
        }
    }

    /// Makes the directory, for a cluster that starts.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(self.run())
    }

    /// Does the directory exist, with or without a record?
    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// The record, if the cluster is up.
    ///
    /// # Errors
    /// If it cannot be read, or is another version's.
    pub fn record(&self) -> Result<Option<Record>, Fail> {
        let path = self.path.join("cluster.json");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| Fail::new(exit::FAILED, format!("{}: {e}", path.display())))?,
        };
        let record: Record = serde_json::from_slice(&text).map_err(|e| {
            let path = path.display();
            Fail::new(exit::FAILED, format!("{path} is damaged, or of another version of ssivmm: {e}"))
        })?;
        Ok(Some(record))
    }

    /// Writes the record: from here on the cluster is up.
    ///
    /// # Errors
    /// The file system's.
    pub fn commit(&self, record: &Record) -> io::Result<()> {
        let part = self.path.join("cluster.json.part");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        file.sync_all()?;
        fs::rename(part, self.path.join("cluster.json"))
    }

    /// Takes the cluster out of the list; its logs are kept until the next cluster of this name goes down. Returns where.
    ///
    /// # Errors
    /// The file system's.
    pub fn retire(&self) -> io::Result<PathBuf> {
        let last = self.root.join("last");
        DirBuilder::new().recursive(true).mode(0o700).create(&last)?;
        let kept = last.join(&self.name);
        remove_tree(&kept)?;
        // An emulated host's payload holds the secret too.
        for gone in [self.path.join("cluster.json"), self.secret(), self.run().join("payload")] {
            match fs::remove_file(gone) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(self.run(), &kept)?;
        remove_tree(&self.path)?;
        Ok(kept)
    }
}

/// Removes a directory and all in it; nothing there is as good.
fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
