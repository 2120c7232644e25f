//! Threads start here and nowhere else. A worker has a name, a stop event that exists before the thread does, and
//! an end that is seen: a body that returns an error or panics is logged, and trips the [`Exit`] of its process.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An event that stays set: once triggered, its descriptor polls readable for ever.
#[derive(Debug, Clone)]
pub struct Stop {
    set: Arc<AtomicBool>,
    event: Arc<EventFd>,
}

/// Tells the process that it is over; the same kind of event as [`Stop`], with another meaning.
pub type Exit = Stop;

impl Stop {
    /// A new event, not triggered.
    ///
    /// # Errors
    /// If no eventfd can be had.
    pub fn new() -> io::Result<Self> {
        Ok(Self { set: Arc::new(AtomicBool::new(false)), event: Arc::new(EventFd::new(EFD_NONBLOCK)?) })
    }

    /// Triggers it; idempotent.
    pub fn trigger(&self) {
        if !self.set.swap(true, Ordering::SeqCst)
            && let Err(error) = self.event.write(1)
        {
            log::error!("stop event could not be written: {error}");
        }
    }

    /// Has it been triggered?
    pub fn is_triggered(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }
}

impl AsRawFd for Stop {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

/// A thread and its stop event. Dropping it stops and joins the thread.
#[derive(Debug)]
pub struct Worker {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts `body` as a thread named `name` (at most 15 bytes show in `ps -L`). `body` returns soon after its stop event is
    /// triggered. When it returns an error or panics, `exit` is triggered.
    ///
    /// # Errors
    /// If no eventfd or no thread can be had.
    pub fn spawn(
        name: &str,
        exit: &Exit,
        body: impl FnOnce(&Stop) -> anyhow::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Stop::new()?;
        let (inner, exit, label) = (stop.clone(), exit.clone(), name.to_owned());
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            match catch_unwind(AssertUnwindSafe(|| body(&inner))) {
                Ok(Ok(())) => log::debug!("worker {label} ended"),
                Ok(Err(error)) => {
                    log::error!("worker {label} failed: {error:#}");
                    exit.trigger();
                }
                Err(_) => {
                    log::error!("worker {label} panicked");
                    exit.trigger();
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// The event that ends it.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Waits until the thread ends by itself, without stopping it.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("a worker could not be joined");
        }
    }

    /// Has the thread ended?
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.trigger();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            log::error!("a worker could not be joined");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::poll::PollContext;

    fn wait(stop: &Stop) -> anyhow::Result<()> {
        let poll: PollContext<u32> = PollContext::new()?;
        poll.add(stop, 0)?;
        poll.wait()?;
        Ok(())
    }

    #[test]
    fn dropping_a_worker_stops_and_joins_it() {
        let exit = Exit::new().unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let seen = done.clone();
        let worker = Worker::spawn("test", &exit, move |stop| {
            wait(stop)?;
            seen.store(true, Ordering::SeqCst);
            Ok(())
        })
        .unwrap();
        drop(worker);
        assert!(done.load(Ordering::SeqCst));
        assert!(!exit.is_triggered());
    }

    #[test]
    fn an_error_or_a_panic_of_a_worker_trips_the_exit() {
        for panics in [false, true] {
            let exit = Exit::new().unwrap();
            let _worker = Worker::spawn("test", &exit, move |_| {
                assert!(!panics, "as the test asks");
                anyhow::bail!("as the test asks")
            })
            .unwrap();
            wait(&exit).unwrap();
        }
    }
}
