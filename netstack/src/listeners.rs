//! The listener table: which cells have a socket on a port, and how many acceptors wait there (design: "A SYN goes to
//! a cell with waiting acceptors, the least loaded first; with none waiting anywhere, in turn").

use std::collections::BTreeMap;

use crate::Cell;
use crate::view::Proto;

/// How the switch knows of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The cell said so.
    Told,
    /// The cell answered a SYN with SYN-ACK, or a datagram; a refusal unlearns it.
    Learnt,
}

/// A cell's listener on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// Acceptors that waited when the cell last said so.
    pub waiting: u32,
    /// SYNs that went there since.
    pub placed: u32,
    /// How it is known.
    pub source: Source,
}

/// Listeners of one port.
#[derive(Debug, Default)]
struct PortListeners {
    cells: BTreeMap<Cell, Listener>,
    /// The cell that was chosen last, for turns.
    last: Option<Cell>,
}

/// The table: bounded by the number of ports and of cells.
#[derive(Debug, Default)]
pub struct ListenerTable {
    ports: BTreeMap<(Proto, u16), PortListeners>,
}

impl ListenerTable {
    /// Cell `cell` has a socket on `port`, where `waiting` acceptors wait.
    pub fn set(&mut self, proto: Proto, port: u16, cell: Cell, waiting: u32) {
        let entry = Listener { waiting, placed: 0, source: Source::Told };
        self.ports.entry((proto, port)).or_default().cells.insert(cell, entry);
    }

    /// Cell `cell` turns out to have a socket on `port`.
    pub fn learn(&mut self, proto: Proto, port: u16, cell: Cell) {
        let entry = Listener { waiting: 0, placed: 0, source: Source::Learnt };
        self.ports.entry((proto, port)).or_default().cells.entry(cell).or_insert(entry);
    }

    /// Cell `cell` has no socket on `port` any more.
    pub fn remove(&mut self, proto: Proto, port: u16, cell: Cell) {
        if let Some(listeners) = self.ports.get_mut(&(proto, port)) {
            listeners.cells.remove(&cell);
            if listeners.cells.is_empty() {
                self.ports.remove(&(proto, port));
            }
        }
    }

    /// Cell `cell` refused a frame for `port`: forgets it there unless the cell itself has said otherwise.
    pub fn refused(&mut self, proto: Proto, port: u16, cell: Cell) {
        if self.get(proto, port, cell).is_some_and(|listener| listener.source == Source::Learnt) {
            self.remove(proto, port, cell);
        }
    }

    /// Cell `cell` is gone.
    pub fn remove_cell(&mut self, cell: Cell) {
        self.ports.retain(|_, listeners| {
            listeners.cells.remove(&cell);
            !listeners.cells.is_empty()
        });
    }

    /// The listener of `cell` on `port`.
    pub fn get(&self, proto: Proto, port: u16, cell: Cell) -> Option<&Listener> {
        self.ports.get(&(proto, port))?.cells.get(&cell)
    }

    /// The cells that have a socket on `port`, in order.
    pub fn cells(&self, proto: Proto, port: u16) -> impl Iterator<Item = Cell> + '_ {
        self.ports.get(&(proto, port)).into_iter().flat_map(|listeners| listeners.cells.keys().copied())
    }

    /// All of it, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Proto, u16, Cell, &Listener)> + '_ {
        self.ports.iter().flat_map(|(&(proto, port), of_port)| {
            of_port.cells.iter().map(move |(&cell, l)| (proto, port, cell, l))
        })
    }

    /// Where a new flow to `port` goes: of the cells that `may` take it, the one with the least `load` among those
    /// where an acceptor waits; with none waiting anywhere, the next in turn. `None` if no cell may.
    pub fn place<L: Ord>(
        &mut self,
        proto: Proto,
        port: u16,
        may: impl Fn(Cell) -> bool,
        load: impl Fn(Cell) -> L,
    ) -> Option<Cell> {
        let listeners = self.ports.get_mut(&(proto, port))?;
        let cells = || listeners.cells.iter().filter(|(cell, _)| may(**cell));
        let free = cells()
            .filter(|(_, listener)| listener.waiting > listener.placed)
            .min_by_key(|(cell, listener)| (load(**cell), listener.placed, **cell))
            .map(|(cell, _)| *cell);
        let next = || {
            let last = listeners.last;
            cells()
                .map(|(cell, _)| *cell)
                .find(|cell| last.is_none_or(|last| *cell > last))
                .or_else(|| cells().next().map(|(cell, _)| *cell))
        };
        let chosen = free.or_else(next)?;
        listeners.last = Some(chosen);
        if let Some(listener) = listeners.cells.get_mut(&chosen) {
            listener.placed = listener.placed.saturating_add(1);
        }
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: u16 = 80;

    #[test]
    fn net_1_a_syn_goes_to_the_least_loaded_cell_with_waiting_acceptors() {
        let mut table = ListenerTable::default();
        table.set(Proto::Tcp, PORT, 0, 2);
        table.set(Proto::Tcp, PORT, 1, 1);
        table.set(Proto::Tcp, PORT, 2, 0);
        let load = |cell| [5, 3, 0][cell as usize];
        let mut place = || table.place(Proto::Tcp, PORT, |_| true, load).unwrap();
        assert_eq!(place(), 1, "the least loaded of 0 and 1; 2 has nobody waiting");
        assert_eq!([place(), place()], [0, 0], "1 has no acceptor left");
        assert_eq!([place(), place(), place(), place()], [1, 2, 0, 1], "none waits: in turn");
    }

    #[test]
    fn net_1_nothing_is_placed_where_no_socket_is() {
        let mut table = ListenerTable::default();
        assert_eq!(table.place(Proto::Tcp, PORT, |_| true, |_| 0), None);
        table.set(Proto::Udp, PORT, 0, 1);
        assert_eq!(table.place(Proto::Tcp, PORT, |_| true, |_| 0), None);
        table.set(Proto::Tcp, PORT, 3, 1);
        assert_eq!(table.place(Proto::Tcp, PORT, |cell| cell != 3, |_| 0), None);
        table.remove_cell(3);
        assert_eq!(table.iter().count(), 1);
    }

    #[test]
    fn a_refusal_unlearns_what_was_learnt_and_not_what_was_told() {
        let mut table = ListenerTable::default();
        table.learn(Proto::Tcp, PORT, 0);
        table.set(Proto::Tcp, PORT, 1, 1);
        table.learn(Proto::Tcp, PORT, 1);
        assert_eq!(
            table.get(Proto::Tcp, PORT, 1).unwrap().source,
            Source::Told,
            "learning overrides no word"
        );
        table.refused(Proto::Tcp, PORT, 0);
        table.refused(Proto::Tcp, PORT, 1);
        assert_eq!(table.cells(Proto::Tcp, PORT).collect::<Vec<_>>(), [1]);
    }
}
