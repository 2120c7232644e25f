//! One connection as a state machine: packets and byte counts in, what to send next out. No socket, no queue, no clock.
//!
//! ```text
//!             REQUEST sent                RESPONSE received
//!   (host) ---------------> Connecting --------------------> Open --+
//!             REQUEST received, listener: RESPONSE to send          |   SHUTDOWN of either side closes one or both
//!   (guest) ------------------------------------------------> Open -+-> directions; RST, sent or received: Closed
//! ```

use std::num::Wrapping;

use super::packet::{Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use super::{CREDIT_BYTES, PACKET_BYTES_MAX};

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The host has asked for it, and the guest has not answered.
    Connecting,
    /// Data flows.
    Open,
    /// The guest knows nothing of it any more, or will as soon as what is pending is sent.
    Closed,
}

/// What became of a packet from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing to do but look at what is pending.
    Go,
    /// The guest has accepted: the host's end is to be handed out.
    Connected,
    /// Its data is to be kept for the host's end.
    Data,
    /// It is over, by the guest's wish.
    Reset,
    /// The guest broke the rules: it is over, and a RST is pending.
    Violation,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    stage: Stage,
    // What the guest told last of its buffer, and what was sent into it. Counts wrap, as the specification has it.
    peer_buf_alloc: u32,
    peer_fwd_cnt: Wrapping<u32>,
    sent: Wrapping<u32>,
    // What came from the guest, what of it was handed on, and what of that the guest was told.
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    told: Wrapping<u32>,
    // Packets to send, in this order.
    pending_open: Option<u16>,
    pending_credit: bool,
    pending_credit_request: bool,
    asked_for_credit: bool,
    pending_shutdown: u32,
    pending_reset: bool,
    /// Directions that the host's end has closed, as the SHUTDOWN flags that the guest was told.
    told_shutdown: u32,
    /// Directions that the guest has closed, as its SHUTDOWN flags.
    guest_shutdown: u32,
}

impl Connection {
    /// One that the host asks for: a REQUEST is pending.
    pub fn from_host() -> Self {
        Self::new(Stage::Connecting, op::REQUEST)
    }

    /// One that the guest asked for with `request`, and is given: a RESPONSE is pending.
    pub fn from_guest(request: &Header) -> Self {
        let mut this = Self::new(Stage::Open, op::RESPONSE);
        this.credit_from(request);
        this
    }

    fn new(stage: Stage, open: u16) -> Self {
        Self {
            stage,
            peer_buf_alloc: 0,
            peer_fwd_cnt: Wrapping(0),
            sent: Wrapping(0),
            received: Wrapping(0),
            forwarded: Wrapping(0),
            told: Wrapping(0),
            pending_open: Some(open),
            pending_credit: false,
            pending_credit_request: false,
            asked_for_credit: false,
            pending_shutdown: 0,
            pending_reset: false,
            told_shutdown: 0,
            guest_shutdown: 0,
        }
    }

    /// Where it is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    fn credit_from(&mut self, header: &Header) {
        let before = self.credit();
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = Wrapping(header.fwd_cnt);
        if self.credit() > before {
            self.asked_for_credit = false;
        }
    }

    /// Bytes that may be sent to the guest now (section 5.10.6.3); zero too if the guest's counts make no sense.
    pub fn credit(&self) -> usize {
        self.peer_buf_alloc.saturating_sub((self.sent - self.peer_fwd_cnt).0) as usize
    }

    /// May data of the host's end be sent?
    pub fn may_send(&self) -> bool {
        self.stage == Stage::Open
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
            && (self.told_shutdown | self.pending_shutdown) & SHUTDOWN_SEND == 0
    }

    /// Has the guest said that it sends no more?
    pub fn guest_sends_no_more(&self) -> bool {
        self.guest_shutdown & SHUTDOWN_SEND != 0
    }

    /// Has the guest said that it receives no more?
    pub fn guest_receives_no_more(&self) -> bool {
        self.guest_shutdown & SHUTDOWN_RECEIVE != 0
    }

    /// Bytes that came and were not handed on.
    pub fn kept(&self) -> u32 {
        (self.received - self.forwarded).0
    }

    /// A packet came, with `header.len` bytes of data behind it.
    pub fn receive(&mut self, header: &Header) -> Step {
        if self.stage == Stage::Closed {
            return Step::Go;
        }
        self.credit_from(header);
        match (header.op, self.stage) {
            (op::RST, _) => {
                self.close();
                Step::Reset
            }
            (op::RESPONSE, Stage::Connecting) if self.pending_open.is_none() => {
                self.stage = Stage::Open;
                Step::Connected
            }
            (op::RW, Stage::Open) if !self.guest_sends_no_more() => {
                // What the host's end will not read any more may still come: it is counted and dropped by the caller.
                if header.len > CREDIT_BYTES - self.kept() {
                    return self.violation();
                }
                self.received += header.len;
                Step::Data
            }
            (op::CREDIT_UPDATE, Stage::Open) => Step::Go,
            (op::CREDIT_REQUEST, Stage::Open) => {
                self.pending_credit = true;
                Step::Go
            }
            (op::SHUTDOWN, Stage::Open) => {
                self.guest_shutdown |= header.flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
                if self.guest_shutdown == SHUTDOWN_RECEIVE | SHUTDOWN_SEND {
                    // "5.10.6.5: the receiver replies with RST when it has nothing more to say."
                    self.reset();
                }
                Step::Go
            }
            _ => self.violation(),
        }
    }

    fn violation(&mut self) -> Step {
        self.reset();
        Step::Violation
    }

    /// `count` bytes of what came were handed on.
    pub fn forwarded(&mut self, count: usize) {
        self.forwarded += count as u32;
        // Half of the credit at a time: the guest never waits for the rest, and packets are few.
        if self.stage == Stage::Open && (self.forwarded - self.told).0 >= CREDIT_BYTES / 2 {
            self.pending_credit = true;
        }
    }

    /// The host's end has more to send than there is credit for.
    pub fn want_credit(&mut self) {
        if !self.asked_for_credit {
            self.asked_for_credit = true;
            self.pending_credit_request = true;
        }
    }

    /// The host's end sends no more.
    pub fn host_sends_no_more(&mut self) {
        self.shut(SHUTDOWN_SEND);
    }

    /// The host's end is gone altogether.
    pub fn host_gone(&mut self) {
        match self.stage {
            Stage::Open => self.shut(SHUTDOWN_SEND | SHUTDOWN_RECEIVE),
            Stage::Connecting => self.reset(),
            Stage::Closed => {}
        }
    }

    fn shut(&mut self, flags: u32) {
        if self.stage == Stage::Open {
            self.pending_shutdown |= flags & !self.told_shutdown;
        }
    }

    /// It is over: a RST is pending, and nothing else.
    pub fn reset(&mut self) {
        if self.stage != Stage::Closed {
            let known = self.pending_open != Some(op::REQUEST);
            self.close();
            // A guest that was never asked needs not be told.
            self.pending_reset = known;
        }
    }

    fn close(&mut self) {
        self.stage = Stage::Closed;
        self.pending_open = None;
        self.pending_credit = false;
        self.pending_credit_request = false;
        self.pending_shutdown = 0;
    }

    /// Is a packet without data to be sent?
    pub fn has_pending(&self) -> bool {
        self.pending_open.is_some()
            || self.pending_credit
            || self.pending_credit_request
            || self.pending_shutdown != 0
            || self.pending_reset
    }

    /// The next packet without data (operation, flags), which is then sent.
    pub fn take_pending(&mut self) -> Option<(u16, u32)> {
        if std::mem::take(&mut self.pending_reset) {
            return Some((op::RST, 0));
        }
        if let Some(open) = self.pending_open.take() {
            return Some((open, 0));
        }
        if std::mem::take(&mut self.pending_credit) {
            return Some((op::CREDIT_UPDATE, 0));
        }
        if std::mem::take(&mut self.pending_credit_request) {
            return Some((op::CREDIT_REQUEST, 0));
        }
        let flags = std::mem::take(&mut self.pending_shutdown);
        self.told_shutdown |= flags;
        (flags != 0).then_some((op::SHUTDOWN, self.told_shutdown))
    }

    /// Bytes of data that the next packet may have.
    pub fn data_room(&self) -> usize {
        if self.may_send() && self.pending_open.is_none() { self.credit().min(PACKET_BYTES_MAX) } else { 0 }
    }

    /// A packet with `count` bytes of data goes out.
    pub fn sent(&mut self, count: usize) {
        self.sent += count as u32;
    }

    /// What every packet says of the host's buffer.
    pub fn stamp(&mut self, header: &mut Header) {
        header.buf_alloc = CREDIT_BYTES;
        header.fwd_cnt = self.forwarded.0;
        self.told = self.forwarded;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(op: u16, len: u32, flags: u32, buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header { op, len, flags, buf_alloc, fwd_cnt, ..Header::default() }
    }

    fn open() -> Connection {
        let mut connection = Connection::from_host();
        assert_eq!(connection.take_pending(), Some((op::REQUEST, 0)));
        assert_eq!(connection.receive(&header(op::RESPONSE, 0, 0, 1000, 0)), Step::Connected);
        connection
    }

    /// "5.10.6.3: tx_cnt - peer_fwd_cnt is the sender's view of what is in the peer's buffer; the peer's free space is
    /// peer_buf_alloc less that." Across the wrap of the counts, too.
    #[test]
    fn verify_5_10_6_3_credit() {
        let mut connection = open();
        connection.sent = Wrapping(u32::MAX - 99);
        connection.receive(&header(op::CREDIT_UPDATE, 0, 0, 1000, u32::MAX - 99));
        assert_eq!(connection.credit(), 1000);
        connection.sent(400);
        assert_eq!(connection.credit(), 600);
        connection.receive(&header(op::CREDIT_UPDATE, 0, 0, 1000, 300));
        assert_eq!(connection.credit(), 1000);
        // A guest that takes credit back, or counts wrong, gets nothing rather than everything.
        connection.sent(500);
        connection.receive(&header(op::CREDIT_UPDATE, 0, 0, 100, 300));
        assert_eq!(connection.credit(), 0);
        connection.receive(&header(op::CREDIT_UPDATE, 0, 0, 1000, 900));
        assert_eq!(connection.credit(), 0);
    }

    #[test]
    fn data_beyond_the_credit_is_a_violation() {
        let mut connection = open();
        assert_eq!(connection.receive(&header(op::RW, CREDIT_BYTES - 1, 0, 0, 0)), Step::Data);
        assert_eq!(connection.receive(&header(op::RW, 1, 0, 0, 0)), Step::Data);
        assert_eq!(connection.receive(&header(op::RW, 1, 0, 0, 0)), Step::Violation);
        assert_eq!(connection.take_pending(), Some((op::RST, 0)));
        assert_eq!(connection.take_pending(), None);
    }

    /// "5.10.6.5: graceful disconnect": one direction, then the other, then RST.
    #[test]
    fn verify_5_10_6_5_half_close() {
        let mut connection = open();
        connection.host_sends_no_more();
        assert_eq!(connection.take_pending(), Some((op::SHUTDOWN, SHUTDOWN_SEND)));
        assert!(!connection.may_send());
        assert_eq!(
            connection.receive(&header(op::RW, 5, 0, 1000, 0)),
            Step::Data,
            "the other direction goes on"
        );
        connection.receive(&header(op::SHUTDOWN, 0, SHUTDOWN_SEND, 1000, 0));
        assert_eq!(connection.stage(), Stage::Open);
        connection.receive(&header(op::SHUTDOWN, 0, SHUTDOWN_RECEIVE, 1000, 0));
        assert_eq!(connection.take_pending(), Some((op::RST, 0)));
        assert_eq!(connection.stage(), Stage::Closed);
    }

    #[test]
    fn credit_is_told_when_half_was_handed_on() {
        let mut connection = open();
        let half = CREDIT_BYTES / 2;
        assert_eq!(connection.receive(&header(op::RW, half, 0, 0, 0)), Step::Data);
        connection.forwarded(half as usize - 1);
        assert!(!connection.has_pending());
        connection.forwarded(1);
        assert_eq!(connection.take_pending(), Some((op::CREDIT_UPDATE, 0)));
        let mut stamped = Header::default();
        connection.stamp(&mut stamped);
        assert_eq!((stamped.buf_alloc, stamped.fwd_cnt), (CREDIT_BYTES, half));
    }

    #[test]
    fn an_answer_to_nothing_is_a_violation() {
        let mut connection = Connection::from_host();
        assert_eq!(connection.receive(&header(op::RESPONSE, 0, 0, 0, 0)), Step::Violation, "not yet asked");
        assert_eq!(connection.take_pending(), None, "and so not told");
        let mut connection = open();
        assert_eq!(connection.receive(&header(op::RESPONSE, 0, 0, 0, 0)), Step::Violation);
        let mut connection = open();
        assert_eq!(connection.receive(&header(99, 0, 0, 0, 0)), Step::Violation);
    }

    proptest! {
        /// Whatever the guest sends: what is kept never exceeds the credit, and after a RST nothing more is sent.
        #[test]
        fn arbitrary_packets_keep_the_bounds(
            packets in prop::collection::vec((0u16..9, 0..2 * CREDIT_BYTES, any::<u32>(), any::<u32>(), any::<u32>()), 1..60),
            takes in prop::collection::vec(0usize..1000, 60),
        ) {
            let mut connection = open();
            let mut resets = 0;
            for ((op, len, flags, buf_alloc, fwd_cnt), take) in packets.into_iter().zip(takes) {
                let step = connection.receive(&header(op, len, flags, buf_alloc, fwd_cnt));
                prop_assert!(connection.kept() <= CREDIT_BYTES);
                if step == Step::Data {
                    connection.forwarded(take.min(connection.kept() as usize));
                }
                let room = connection.data_room();
                prop_assert!(room <= connection.credit());
                connection.sent(room);
                while let Some((op, _)) = connection.take_pending() {
                    prop_assert_eq!(resets, 0, "after a RST");
                    resets += usize::from(op == op::RST);
                }
            }
            prop_assert!(resets <= 1);
        }
    }
}
