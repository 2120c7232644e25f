//! Terminals: where console bytes go to and come from. A console device (COM1, hvc0) is on one side of a [`Terminal`];
//! sinks, subscribers and a source of input are on the other.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::lock;

/// Called when something can go on; must not block.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// Bytes of output kept for who subscribes later.
const HISTORY_BYTES: usize = 64 << 10;
/// Most bytes of input that wait for the guest.
const INPUT_BYTES: usize = 64 << 10;
/// Most pieces of output that wait for one subscriber.
const SUBSCRIBER_PIECES: usize = 1024;

#[derive(Default)]
struct Output {
    sinks: Vec<Box<dyn Write + Send>>,
    subscribers: Vec<Sender<Arc<[u8]>>>,
    history: VecDeque<u8>,
}

#[derive(Default)]
struct Inner {
    output: Mutex<Output>,
    input: Mutex<VecDeque<u8>>,
    wakers: Mutex<Vec<Waker>>,
}

/// Both directions of a console. Cheap to clone; all clones are one terminal.
#[derive(Clone, Default)]
pub struct Terminal(Arc<Inner>);

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal").finish_non_exhaustive()
    }
}

impl Terminal {
    /// A terminal that keeps history and has no sink yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a place where output is written at once, by the thread that makes it. A sink that fails is dropped.
    pub fn add_sink(&self, sink: Box<dyn Write + Send>) {
        lock(&self.0.output).sinks.push(sink);
    }

    /// The last 64 KiB of output, and a channel of what follows. A subscriber that does not keep up loses pieces, not
    /// the guest its time; one that drops the channel is forgotten.
    pub fn subscribe(&self) -> (Vec<u8>, Receiver<Arc<[u8]>>) {
        let (sender, receiver) = bounded(SUBSCRIBER_PIECES);
        let mut output = lock(&self.0.output);
        output.subscribers.push(sender);
        (output.history.iter().copied().collect(), receiver)
    }

    /// The last 64 KiB of output.
    pub fn history(&self) -> Vec<u8> {
        lock(&self.0.output).history.iter().copied().collect()
    }

    /// The guest wrote `bytes`.
    pub fn write_output(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut output = lock(&self.0.output);
        output.sinks.retain_mut(|sink| match sink.write_all(bytes).and_then(|()| sink.flush()) {
            Ok(()) => true,
            Err(error) => {
                log::warn!("a console sink failed and is dropped: {error}");
                false
            }
        });
        if !output.subscribers.is_empty() {
            let piece: Arc<[u8]> = bytes.into();
            output.subscribers.retain(|subscriber| {
                !matches!(subscriber.try_send(piece.clone()), Err(TrySendError::Disconnected(_)))
            });
        }
        output.history.extend(bytes);
        let over = output.history.len().saturating_sub(HISTORY_BYTES);
        output.history.drain(..over);
    }

    /// Types `bytes` into the console; returns how many were taken. The rest does not fit: at most 64 KiB wait.
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        let taken = {
            let mut input = lock(&self.0.input);
            let taken = bytes.len().min(INPUT_BYTES.saturating_sub(input.len()));
            input.extend(&bytes[..taken]);
            taken
        };
        if taken > 0 {
            let wakers = lock(&self.0.wakers).clone();
            wakers.iter().for_each(|wake| wake());
        }
        taken
    }

    /// Takes at most `max` bytes of input for the guest.
    pub fn take_input(&self, max: usize) -> Vec<u8> {
        let mut input = lock(&self.0.input);
        let taken = max.min(input.len());
        input.drain(..taken).collect()
    }

    /// Bytes of input that wait for the guest.
    pub fn waiting_input(&self) -> usize {
        lock(&self.0.input).len()
    }

    /// `wake` is called when input arrives.
    pub fn on_input(&self, wake: Waker) {
        lock(&self.0.wakers).push(wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_subscriber_gets_the_last_64_kib_and_what_follows() {
        let terminal = Terminal::new();
        terminal.write_output(&[b'a'; HISTORY_BYTES]);
        terminal.write_output(b"bc");
        let (history, live) = terminal.subscribe();
        assert_eq!(history.len(), HISTORY_BYTES);
        assert_eq!(&history[HISTORY_BYTES - 3..], b"abc");
        terminal.write_output(b"d");
        assert_eq!(&live.recv().unwrap()[..], b"d");
    }

    #[test]
    fn input_is_bounded_and_keeps_its_order() {
        let terminal = Terminal::new();
        assert_eq!(terminal.push_input(&vec![1; INPUT_BYTES + 1]), INPUT_BYTES);
        assert_eq!(terminal.push_input(b"x"), 0);
        assert_eq!(terminal.take_input(2), [1, 1]);
        assert_eq!(terminal.push_input(b"xyz"), 2);
        let rest = terminal.take_input(usize::MAX);
        assert_eq!(&rest[rest.len() - 3..], b"\x01xy");
    }

    #[test]
    fn a_sink_that_fails_is_dropped_and_the_others_go_on() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::Error::other("as the test asks"))
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let terminal = Terminal::new();
        terminal.add_sink(Box::new(Broken));
        let (_, live) = terminal.subscribe();
        terminal.write_output(b"a");
        terminal.write_output(b"b");
        assert_eq!(live.try_iter().map(|piece| piece.to_vec()).collect::<Vec<_>>(), [b"a", b"b"]);
        assert!(lock(&terminal.0.output).sinks.is_empty());
    }
}
