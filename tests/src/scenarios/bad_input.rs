//! What is refused, and how: a clear message, an exit code, and nothing changed.

use anyhow::{Result, ensure};

use crate::cluster::Cluster;

pub fn refusals(cluster: &Cluster<'_>) -> Result<()> {
    // (program, arguments, what the message has to contain)
    let shell = "sleep 1000 & echo $!";
    let pid = cluster
        .exec(0, &["sh", "-c", &format!("{shell} >/var/tmp/pid 2>&1 </dev/null; cat /var/tmp/pid")])?;
    let pid = pid.trim();
    let table: &[(&[&str], &str)] = &[
        (&["migrate", pid, "7"], "EHOSTUNREACH"),
        (&["migrate", "59999", "1"], "ESRCH"),
        (&["migrate", "1", "1"], "EPERM"),
        (&["migrate", "2", "1"], "kernel thread"),
        (&["migrate", "x", "1"], "x"),
        (&["migrate", pid], "CELL"),
        (&["setpriv", "--reuid=33", "--clear-groups", "migrate", pid, "1"], "EPERM"),
    ];
    for (argv, word) in table {
        let output = cluster.exec_output(0, argv)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "{argv:?} succeeded");
        ensure!(said.contains(word), "{argv:?} says {said:?}, not {word:?}");
    }
    let outside = cluster.output("migrate", &[pid, "7"])?;
    ensure!(!outside.status.success(), "{outside:?}");
    let alive = cluster.exec(0, &["sh", "-c", &format!("kill -0 {pid} && kill {pid} && echo there")])?;
    ensure!(alive == "there\n", "the process did not survive the refusals");
    for (verb, args) in [
        ("exec", &["--cell", "9", "--", "true"][..]),
        ("exec", &["--", "no-such-program"]),
        ("console", &["9"]),
    ] {
        let output = cluster.output(verb, args)?;
        ensure!(!output.status.success() && !output.stderr.is_empty(), "{verb} {args:?}: {output:?}");
    }
    Ok(())
}

pub fn foreign_images(cluster: &Cluster<'_>) -> Result<()> {
    // `migrate --restart FILE` calls restart(2) on an open file.
    for make in
        [": > /var/tmp/image", "head -c 100000 /dev/urandom > /var/tmp/image", "cp /bin/true /var/tmp/image"]
    {
        cluster.exec(0, &["sh", "-c", make])?;
        let output = cluster.exec_output(0, &["migrate", "--restart", "/var/tmp/image"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && !said.is_empty(), "{make}: {output:?}");
    }
    cluster.exec(0, &["rm", "/var/tmp/image"])?;
    Ok(())
}

/// A process with threads is restarted from its checkpoint; images that were damaged and sealed again are refused, or become
/// something that can be killed (`tests/guest/images.c`). The kernel has nothing to say about itself.
pub fn damaged_images(cluster: &Cluster<'_>) -> Result<()> {
    let report = cluster.passes(0, "images", &[super::moving::SEEDS[0], "100"])?;
    println!("  {}", report.lines().next().unwrap_or_default());
    let log = cluster.exec(0, &["dmesg"])?;
    let mut lines = log.lines();
    let found = lines
        .find(|line| ["BUG:", "WARNING:", "Oops", "stack-protector"].iter().any(|word| line.contains(word)));
    ensure!(found.is_none(), "the kernel's log says {found:?}");
    Ok(())
}
