use ssi_proto::request::Request;

use super::show::say;
use super::state::{State, refusal};
use super::{MigrateArgs, Outcome, exit};
use crate::control::ClientError;
use crate::control::migrate::Moved;

/// `migrate`.
pub fn run(args: &MigrateArgs, cluster: Option<&str>) -> Outcome {
    let (client, _) = State::open()?.session(cluster)?;
    let request = Request::Migrate { pid: args.pid, cell: args.cell, eager: args.eager };
    match client.ask::<Moved>(&request) {
        Ok(moved) if args.json.json => {
            let mut record = serde_json::to_value(&moved)?;
            record["ok"] = true.into();
            say(&serde_json::to_string_pretty(&record)?)?;
            Ok(0)
        }
        Ok(moved) => {
            say(&format!("process {} moved from cell {} to cell {}", moved.pid, moved.from, moved.to))?;
            Ok(0)
        }
        Err(ClientError::Refused { error, code }) if args.json.json => {
            say(&serde_json::to_string_pretty(
                &serde_json::json!({"ok": false, "pid": args.pid, "to": args.cell, "error": error, "code": code}),
            )?)?;
            let fail = refusal(ClientError::Refused { error, code });
            Ok(if fail.status == exit::NOT_THERE { exit::NOT_THERE } else { exit::FAILED })
        }
        Err(error) => Err(refusal(error)),
    }
}
