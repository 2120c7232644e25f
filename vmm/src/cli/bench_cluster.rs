//! Benchmarks in a cluster that runs: programs in its cells.

use ssi_proto::frame::Kind;
use ssi_proto::request::{Exec, Exit, Request, Started, Status};

use super::state::{State, refusal};
use super::{Fail, exit};
use crate::control::Client;
use crate::dsm::bench::{CELLS_PROGRAM, CELLS_ROUNDS_MAX, report_of_cells};

/// What a program may say, in bytes; more is not kept.
const OUTPUT_MAX: usize = 8 << 20;
/// Rounds of [`dsm`], unless told otherwise.
const DSM_ROUNDS: u32 = 5;

/// Sessions with one cluster.
pub struct Cluster<'a> {
    state: State,
    name: Option<&'a str>,
}

/// What a program has said, and how it ended.
pub struct Said {
    pub stdout: String,
    pub stderr: String,
    /// `None`: the cell or its cluster ended before it did.
    pub exit: Option<Exit>,
}

impl<'a> Cluster<'a> {
    pub fn open(name: Option<&'a str>) -> Result<Self, Fail> {
        Ok(Self { state: State::open()?, name })
    }

    pub fn session(&self) -> Result<Client, Fail> {
        Ok(self.state.session(self.name)?.0)
    }

    /// Runs a program to its end.
    pub fn run(&self, cell: u32, argv: &[&str]) -> Result<Said, Fail> {
        let session = self.session()?;
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        let exec = Request::Exec(Exec { argv, cell, ..Exec::default() });
        let _: Started = session.ask(&exec).map_err(refusal)?;
        let (mut stdout, mut stderr, mut exit) = (Vec::new(), Vec::new(), None);
        let keep = |kept: &mut Vec<u8>, more: &[u8]| {
            let room = OUTPUT_MAX.saturating_sub(kept.len());
            kept.extend_from_slice(&more[..more.len().min(room)]);
        };
        while let Some(frame) = session.receive()? {
            match frame.kind {
                Kind::Stdout => keep(&mut stdout, &frame.payload),
                Kind::Stderr => keep(&mut stderr, &frame.payload),
                Kind::Exit => {
                    exit = Some(frame.record(Kind::Exit)?);
                    break;
                }
                _ => {}
            }
        }
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Said { stdout: text(stdout), stderr: text(stderr), exit })
    }
}

/// `bench dsm --cells`: measures, and returns what to print.
pub fn dsm(rounds: Option<u32>, json: bool, name: Option<&str>) -> Result<String, Fail> {
    let cluster = Cluster::open(name)?;
    let status: Status = cluster.session()?.ask(&Request::Status).map_err(refusal)?;
    let up = status.nodes.iter().take_while(|node| node.state == "up").count();
    if up < 2 {
        let why =
            format!("bench dsm --cells needs cells 0 and 1; of cluster {} {up} can be used", status.name);
        return Err(Fail::new(exit::USAGE, why));
    }
    let rounds = rounds.unwrap_or(DSM_ROUNDS);
    if !(1..=CELLS_ROUNDS_MAX).contains(&rounds) {
        return Err(Fail::new(exit::USAGE, format!("rounds must be from 1 to {CELLS_ROUNDS_MAX}")));
    }
    let (rounds, cells) = (rounds.to_string(), up.min(3).to_string());
    eprintln!("measuring in {cells} cells, {rounds} rounds");
    let said = cluster.run(0, &[CELLS_PROGRAM, &rounds, &cells])?;
    match said.exit {
        Some(Exit { code: Some(0), .. }) => Ok(report_of_cells(&said.stdout, json)?),
        Some(_) => {
            let last = said.stdout.lines().last().unwrap_or_default();
            Err(Fail::new(
                exit::FAILED,
                format!("the program in the cells failed: {last} {}", said.stderr.trim_end()),
            ))
        }
        None => Err(Fail::new(exit::FAILED, "the cluster has ended")),
    }
}
