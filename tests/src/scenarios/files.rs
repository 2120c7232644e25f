//! The one root file system.

use anyhow::{Result, ensure};

use crate::cluster::Cluster;

pub fn close_to_open(cluster: &Cluster<'_>) -> Result<()> {
    for (round, (writer, reader)) in [(0, 1), (1, 0), (0, 1)].into_iter().enumerate() {
        let write = format!("echo round {round} > /var/tmp/shared && stat -c %s /var/tmp/shared");
        cluster.exec(writer, &["sh", "-c", &write])?;
        let read = cluster.exec(reader, &["cat", "/var/tmp/shared"])?;
        ensure!(
            read == format!("round {round}\n"),
            "cell {reader} reads {read:?} after cell {writer} wrote round {round}"
        );
    }
    cluster.exec(1, &["rm", "/var/tmp/shared"])?;
    ensure!(
        !cluster.exec_output(0, &["cat", "/var/tmp/shared"])?.status.success(),
        "a removed file is still there"
    );
    Ok(())
}

pub fn same_tree(cluster: &Cluster<'_>) -> Result<()> {
    let list = "cd /etc && find . -xdev -type f -readable | sort | xargs -d '\\n' sha256sum";
    let (zero, one) = (cluster.exec(0, &["sh", "-c", list])?, cluster.exec(1, &["sh", "-c", list])?);
    ensure!(zero == one && zero.lines().count() > 100, "/etc differs between the cells");
    let own = "touch /var/tmp/o && chown 33:4 /var/tmp/o && chmod 2640 /var/tmp/o && ln -s o /var/tmp/l && ln /var/tmp/o /var/tmp/h";
    cluster.exec(0, &["sh", "-c", own])?;
    let seen = cluster.exec(1, &["stat", "-c", "%u:%g %a %h %N", "/var/tmp/o", "/var/tmp/l"])?;
    cluster.exec(0, &["rm", "/var/tmp/o", "/var/tmp/l", "/var/tmp/h"])?;
    ensure!(seen.starts_with("33:4 2640 2 "), "{seen}");
    ensure!(seen.contains("'/var/tmp/l' -> 'o'"), "{seen}");
    Ok(())
}
