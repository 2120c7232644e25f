use std::time::{Duration, Instant};

use ssi_proto::request::Request;

use super::Outcome;
use super::show::say;
use super::state::{Record, State};
use crate::control::Client;
use crate::fabric::Secret;
use crate::launch::ProcessRecord;
use crate::launch::process::end_all;

/// After the controller said that all cells have stopped, processes end within this or are killed.
const END_WITHIN: Duration = Duration::from_secs(10);
/// A process that is asked to end has this long.
const GRACE: Duration = Duration::from_secs(3);

/// `down`.
pub fn run(cluster: Option<&str>) -> Outcome {
    let state = State::open()?;
    let (dir, _) = state.existing(cluster)?;
    let _lock = dir.lock()?;
    // Somebody else's `down` may have been faster.
    let (dir, record) = state.existing(Some(&dir.name))?;
    let asked = Secret::load(&dir.secret()).map_err(anyhow::Error::from).and_then(|secret| {
        let client = Client::connect(&record.control, &dir.name, &secret)?;
        Ok(client.ask_with(&Request::Shutdown, |line| eprintln!("{line}"))?)
    });
    match asked {
        Ok(_) => wait_for_end(&record),
        Err(error) if record.is_running() => {
            eprintln!("the controller does not answer ({error:#}); ending the processes");
        }
        Err(_) => eprintln!("cluster {} had ended by itself", dir.name),
    }
    end_all(&record.processes, GRACE);
    let logs = dir.retire()?;
    say(&format!("cluster {} is down; its logs are in {}", dir.name, logs.display()))?;
    Ok(0)
}

fn wait_for_end(record: &Record) {
    let deadline = Instant::now() + END_WITHIN;
    while record.processes.iter().any(ProcessRecord::is_running) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}
