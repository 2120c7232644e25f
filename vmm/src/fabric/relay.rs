//! Joining two byte streams: what comes out of one goes into the other.

use std::io;

use super::stream::{SharedStream, write_all};
use crate::worker::{Exit, Worker};

const CHUNK_BYTES: usize = 64 << 10;

/// Copies both ways until both directions have ended, or one of them fails; then ends both streams. An end of one
/// direction is passed on as such, so a half-closed stream stays half-closed.
///
/// # Errors
/// If no thread can be had.
pub fn relay(a: &SharedStream, b: &SharedStream, exit: &Exit) -> io::Result<()> {
    let (from, to) = (b.clone(), a.clone());
    let back = Worker::spawn("relay", exit, move |_| {
        one_way(&from, &to);
        Ok(())
    });
    if let Ok(back) = back {
        one_way(a, b);
        // Joins: the other direction may go on.
        back.join();
        a.shutdown();
        b.shutdown();
        return Ok(());
    }
    a.shutdown();
    b.shutdown();
    back.map(drop)
}

fn one_way(from: &SharedStream, to: &SharedStream) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => {
                to.shutdown_write();
                return;
            }
            Ok(n) if write_all(to.as_ref(), &[&buffer[..n]]).is_ok() => {}
            _ => {
                from.shutdown();
                to.shutdown();
                return;
            }
        }
    }
}
