//! Who is alive. A peer that is dead stays dead: a cell that lost its memory cannot come back under its old number.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use super::wire::Peer;

/// The set of nodes that are alive, and the number of changes so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Bit n is set while node n is alive.
    pub alive: u64,
    /// Grows by one at each change.
    pub generation: u64,
    /// Is the I/O server alive?
    pub io: bool,
}

/// A peer was found dead.
#[derive(Debug, Clone)]
pub struct Death {
    /// Who.
    pub peer: Peer,
    /// What was seen.
    pub why: String,
    /// The set after it.
    pub view: View,
}

type Listener = Box<dyn Fn(&Death) + Send + Sync>;

/// The view of this process, and those who want to hear of changes.
pub struct Membership {
    view: Mutex<View>,
    listeners: Mutex<Vec<Listener>>,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership").field("view", &self.view()).finish_non_exhaustive()
    }
}

impl Membership {
    /// All of `nodes` nodes (at most 64) and the I/O server are alive.
    pub fn new(nodes: u32) -> Self {
        let alive = if nodes >= 64 { u64::MAX } else { (1 << nodes) - 1 };
        Self { view: Mutex::new(View { alive, generation: 0, io: true }), listeners: Mutex::default() }
    }

    /// Who is alive now.
    pub fn view(&self) -> View {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is `peer` alive?
    pub fn is_alive(&self, peer: Peer) -> bool {
        let view = self.view();
        match peer {
            Peer::Io => view.io,
            Peer::Node(n) => n < 64 && view.alive >> n & 1 == 1,
            Peer::Client => false,
        }
    }

    /// `listener` hears of each later death, once, after the view has changed, on the fabric's membership thread.
    pub fn on_death(&self, listener: impl Fn(&Death) + Send + Sync + 'static) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(listener));
    }

    /// Takes `peer` out. Returns what the listeners are to be told, or `None` if it was dead already.
    pub(super) fn remove(&self, peer: Peer, why: &str) -> Option<Death> {
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        match peer {
            Peer::Io if view.io => view.io = false,
            Peer::Node(n) if n < 64 && view.alive >> n & 1 == 1 => {
                view.alive &= !(1 << n);
                view.generation += 1;
            }
            _ => return None,
        }
        Some(Death { peer, why: why.to_owned(), view: *view })
    }

    pub(super) fn tell(&self, death: &Death) {
        for listener in self.listeners.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            listener(death);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_death_is_one_generation_and_the_dead_stay_dead() {
        let membership = Membership::new(64);
        assert_eq!(membership.view(), View { alive: u64::MAX, generation: 0, io: true });
        let death = membership.remove(Peer::Node(63), "gone").unwrap();
        assert_eq!(death.view, View { alive: u64::MAX >> 1, generation: 1, io: true });
        assert!(membership.remove(Peer::Node(63), "again").is_none());
        assert!(!membership.is_alive(Peer::Node(63)) && membership.is_alive(Peer::Node(0)));
        assert_eq!(membership.remove(Peer::Io, "gone").unwrap().view.generation, 1);
        assert!(!membership.is_alive(Peer::Io) && !membership.is_alive(Peer::Node(64)));
    }
}
