use std::fmt::Write as _;

use ssi_proto::request::{NodeStatus, Process, Request, Status};

use super::state::{State, ask, refusal};
use super::{Fail, Outcome};

fn print_json<T: serde::Serialize>(record: &T) -> Result<(), Fail> {
    say(&serde_json::to_string_pretty(record)?)
}

/// Prints a line on standard output; whoever reads it may be gone (`| head`).
pub fn say(line: &str) -> Result<(), Fail> {
    use std::io::Write as _;
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Bytes, for a person.
fn human(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

/// `status`.
pub fn status(cluster: Option<&str>, json: bool, dsm: bool) -> Outcome {
    let (client, record) = State::open()?.session(cluster)?;
    let mut status: Status = client.ask(&Request::Status).map_err(refusal)?;
    // As this machine sees them: inside an emulated host they are others.
    status.publish = record.spec.publish.iter().map(ToString::to_string).collect();
    if json {
        print_json(&status)?;
    } else if dsm {
        say(&describe_dsm(&status))?;
    } else {
        say(&describe(&status))?;
    }
    Ok(0)
}

/// What each node's coherent memory has cost, in the columns of the paper's Table 4.
pub fn describe_dsm(status: &Status) -> String {
    let mut text = "NODE ACCESS      COUNT   MIN us  MEAN us   MAX us".to_owned();
    for node in &status.nodes {
        let dsm = &node.dsm;
        for (name, wait) in [("read", &dsm.read), ("write", &dsm.write), ("upgrade", &dsm.upgrade)] {
            let _ = write!(
                text,
                "\n{:>4} {name:<8} {:>8} {:>8} {:>8} {:>8}",
                node.node, wait.count, wait.min_us, wait.mean_us, wait.max_us
            );
        }
    }
    text +=
        "\n\nNODE  SENT MSGS      SENT  RECEIVED  REFUSED  WINDOW  GIVEN BACK  CAME AHEAD    LOST (pages)";
    for node in &status.nodes {
        let dsm = &node.dsm;
        let _ = write!(
            text,
            "\n{:>4} {:>10} {:>9} {:>9} {:>8} {:>7} {:>11} {:>11} {:>7}",
            node.node,
            dsm.sent_count,
            human(dsm.sent_bytes),
            dsm.received_count,
            dsm.refused_count,
            dsm.window_pages,
            dsm.discarded_pages,
            dsm.run_pages,
            dsm.lost_pages
        );
    }
    text
}

/// The cluster in a line and a table.
pub fn describe(status: &Status) -> String {
    let ports = if status.publish.is_empty() { "none".to_owned() } else { status.publish.join(", ") };
    let head = format!(
        "cluster {} on {}, up {} s, published ports: {ports}\n\
         NODE STATE    VCPUS   MEMORY  VMM USES  PROCESSES  FROM ELSEWHERE",
        status.name, status.host, status.uptime_s
    );
    let line = |node: &NodeStatus| {
        format!(
            "\n{:>4} {:<8} {:>6} {:>8} {:>9} {:>10} {:>15}",
            node.node,
            node.state,
            node.vcpus,
            human(node.memory_bytes),
            human(node.vmm_overhead_bytes),
            node.processes,
            node.guests
        )
    };
    status.nodes.iter().map(line).fold(head, |text, line| text + &line)
}

/// `ps`.
pub fn ps(cluster: Option<&str>, json: bool, all: bool) -> Outcome {
    let processes: Vec<Process> = ask(cluster, &Request::Ps)?;
    if json {
        print_json(&processes)?;
        return Ok(0);
    }
    say("    PID    PPID CELL HOME MOVES   UID S      RSS COMMAND")?;
    let kernel = |process: &Process| process.command.starts_with('[');
    for process in processes.iter().filter(|process| all || !(process.deputy || kernel(process))) {
        let note = if process.deputy { " (deputy)" } else { "" };
        say(&format!(
            "{:>7} {:>7} {:>4} {:>4} {:>5} {:>5} {} {:>8} {}{note}",
            process.pid,
            process.ppid,
            process.cell,
            process.home,
            process.moves,
            process.uid,
            process.state,
            human(process.rss_kib << 10),
            printable(&process.command)
        ))?;
    }
    Ok(0)
}

/// A program chooses its own command line: what would steer the terminal is shown as `?`.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// `list`.
pub fn list(json: bool) -> Outcome {
    let state = State::open()?;
    let mut all = Vec::new();
    for name in state.names()? {
        let Some(record) = state.cluster(&name)?.record()? else { continue };
        let spec = &record.spec;
        all.push(serde_json::json!({
            "name": name, "host": spec.host, "nodes": spec.nodes, "vcpus": spec.vcpus,
            "memory_bytes": spec.memory_bytes, "publish": spec.publish, "running": record.is_running(),
            "since_unix_s": record.since_unix_s,
        }));
    }
    if json {
        print_json(&all)?;
        return Ok(0);
    }
    if all.is_empty() {
        say("no cluster is up")?;
    }
    for cluster in &all {
        let text = |key: &str| cluster[key].as_str().map_or_else(|| cluster[key].to_string(), str::to_owned);
        let state = if cluster["running"] == true { "up" } else { "ended by itself" };
        say(&format!("{:<16} {} nodes on {:<4} {state}", text("name"), text("nodes"), text("host")))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a?[2Jb?c");
    }

    #[test]
    fn bytes_are_shown_in_the_unit_that_fits() {
        assert_eq!(human(4096), "4 KiB");
        assert_eq!(human(512 << 20), "512 MiB");
        assert_eq!(human(3 << 29), "1.5 GiB");
    }
}
