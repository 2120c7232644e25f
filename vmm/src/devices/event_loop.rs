//! The one event loop that every device worker runs, on event-manager: sources with a token, a handler, a stop event.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;

use super::lock;
use crate::worker::Stop;

const STOP: u32 = u32::MAX;

/// What a worker does when a descriptor becomes ready.
pub trait Handler: Send {
    /// The descriptors to watch from the start for reading, each with a token below `u32::MAX`.
    fn sources(&self) -> Vec<(RawFd, u32)>;

    /// The source of `token` is ready. Level-triggered: what is not drained comes again. More sources can be watched
    /// through `ops` ([`watch`]), or fewer.
    ///
    /// # Errors
    /// An error ends the worker, and with it what it works for.
    fn ready(&mut self, token: u32, events: EventSet, ops: &mut EventOps) -> anyhow::Result<()>;
}

/// Drains an eventfd; an empty one is no error.
pub fn drain(event: &EventFd) {
    if let Err(error) = event.read()
        && error.kind() != std::io::ErrorKind::WouldBlock
    {
        log::error!("eventfd could not be read: {error}");
    }
}

/// Watches `fd` for `events` from now on.
///
/// # Errors
/// If the descriptor cannot be watched, or already is.
pub fn watch(ops: &mut EventOps, fd: RawFd, token: u32, events: EventSet) -> anyhow::Result<()> {
    Ok(ops.add(Events::with_data_raw(fd, token, events))?)
}

struct Subscriber<H> {
    handler: H,
    stop: RawFd,
    end: Option<anyhow::Result<()>>,
}

impl<H: Handler> Subscriber<H> {
    fn try_init(&mut self, ops: &mut EventOps) -> anyhow::Result<()> {
        watch(ops, self.stop, STOP, EventSet::IN)?;
        for (fd, token) in self.handler.sources() {
            watch(ops, fd, token, EventSet::IN)?;
        }
        Ok(())
    }
}

impl<H: Handler> MutEventSubscriber for Subscriber<H> {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = self.try_init(ops) {
            self.end = Some(Err(error));
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if self.end.is_some() {
            return;
        }
        if events.data() == STOP {
            self.end = Some(Ok(()));
        } else if let Err(error) = self.handler.ready(events.data(), events.event_set(), ops) {
            self.end = Some(Err(error));
        }
    }
}

/// Runs `handler` until `stop` is triggered or it fails: the body of a [`crate::worker::Worker`].
///
/// # Errors
/// Those of the handler and of epoll.
pub fn run<H: Handler>(stop: &Stop, handler: H) -> anyhow::Result<()> {
    let mut manager = EventManager::new()?;
    let subscriber = Arc::new(Mutex::new(Subscriber { handler, stop: stop.as_raw_fd(), end: None }));
    manager.add_subscriber(subscriber.clone());
    loop {
        if let Some(end) = lock(&subscriber).end.take() {
            return end;
        }
        manager.run()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::{Exit, Worker};
    use std::sync::mpsc;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    struct Echo {
        event: EventFd,
        seen: mpsc::Sender<u32>,
        fail: bool,
    }

    impl Handler for Echo {
        fn sources(&self) -> Vec<(RawFd, u32)> {
            vec![(self.event.as_raw_fd(), 3)]
        }

        fn ready(&mut self, token: u32, _events: EventSet, _ops: &mut EventOps) -> anyhow::Result<()> {
            drain(&self.event);
            anyhow::ensure!(!self.fail, "as the test asks");
            self.seen.send(token)?;
            Ok(())
        }
    }

    #[test]
    fn a_ready_source_reaches_the_handler_and_stop_ends_the_loop() {
        let exit = Exit::new().unwrap();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let (seen, arrived) = mpsc::channel();
        let echo = Echo { event: event.try_clone().unwrap(), seen, fail: false };
        let worker = Worker::spawn("test", &exit, move |stop| run(stop, echo)).unwrap();
        event.write(1).unwrap();
        assert_eq!(arrived.recv().unwrap(), 3);
        drop(worker);
        assert!(!exit.is_triggered());
        assert!(arrived.recv().is_err(), "the handler is dropped with the loop");
    }

    #[test]
    fn an_error_of_the_handler_ends_the_worker_and_trips_the_exit() {
        let exit = Exit::new().unwrap();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        event.write(1).unwrap();
        let (seen, arrived) = mpsc::channel();
        let echo = Echo { event, seen, fail: true };
        let worker = Worker::spawn("test", &exit, move |stop| run(stop, echo)).unwrap();
        assert!(arrived.recv().is_err(), "the handler is dropped with the loop");
        drop(worker);
        assert!(exit.is_triggered());
    }
}
