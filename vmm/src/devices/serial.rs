//! COM1: a 16550A at port 0x3f8, IRQ 4, on vm-superio, with a [`Terminal`] behind it.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, Weak};

use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::lock;
use super::terminal::Terminal;

/// First port of COM1.
pub const COM1_BASE: u16 = 0x3f8;
/// Ports of COM1.
pub const COM1_PORTS: u16 = 8;
/// Interrupt line of COM1.
pub const COM1_IRQ: u32 = 4;

/// Output is handed on when a line is whole, when this much waits, or when the guest looks at its interrupts: the
/// end of a burst that an interrupt-driven terminal writes.
const FLUSH_BYTES: usize = 256;

const DATA: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;

/// IER: interrupt when data has been received.
const RECEIVE_INTERRUPT: u8 = 1;
/// LCR: registers 0 and 1 are the divisor.
const DIVISOR_LATCH: u8 = 0x80;
/// MCR: the port talks to itself.
const LOOP_BACK: u8 = 0x10;

struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Collects bytes, for the UART writes them one at a time.
struct Burst {
    terminal: Terminal,
    bytes: Vec<u8>,
}

impl Burst {
    fn hand_on(&mut self) {
        self.terminal.write_output(&self.bytes);
        self.bytes.clear();
    }
}

impl Write for Burst {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        if bytes.contains(&b'\n') || self.bytes.len() >= FLUSH_BYTES {
            self.hand_on();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The serial port of a machine.
pub struct Com1 {
    uart: Mutex<Serial<Line, vm_superio::serial::NoEvents, Burst>>,
    terminal: Terminal,
}

impl fmt::Debug for Com1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Com1").finish_non_exhaustive()
    }
}

impl Com1 {
    /// A port that pulses `line` and is the guest's side of `terminal`.
    pub fn new(line: EventFd, terminal: &Terminal) -> Arc<Self> {
        let burst = Burst { terminal: terminal.clone(), bytes: Vec::with_capacity(FLUSH_BYTES) };
        let com1 =
            Arc::new(Self { uart: Mutex::new(Serial::new(Line(line), burst)), terminal: terminal.clone() });
        let weak: Weak<Self> = Arc::downgrade(&com1);
        terminal.on_input(Arc::new(move || {
            if let Some(com1) = weak.upgrade() {
                com1.feed(&mut lock(&com1.uart));
            }
        }));
        com1
    }

    /// Fills the receive FIFO with waiting input, as far as it goes. A driver that does not want receive interrupts is
    /// setting the port up, and clears what it finds: then, and in loop-back mode, input waits.
    fn feed(&self, uart: &mut Serial<Line, vm_superio::serial::NoEvents, Burst>) {
        let listening = uart.read(LCR) & DIVISOR_LATCH == 0 && uart.read(IER) & RECEIVE_INTERRUPT != 0;
        if !listening || uart.read(MCR) & LOOP_BACK != 0 || uart.fifo_capacity() == 0 {
            return;
        }
        let bytes = self.terminal.take_input(uart.fifo_capacity());
        if let Err(error) = uart.enqueue_raw_bytes(&bytes) {
            log::error!("COM1: input lost: {error:?}");
        }
    }

    /// The guest reads register `offset` (below 8).
    pub fn read(&self, offset: u8) -> u8 {
        let mut uart = lock(&self.uart);
        let value = uart.read(offset);
        match offset {
            DATA => self.feed(&mut uart),
            IIR => uart.writer_mut().hand_on(),
            _ => {}
        }
        value
    }

    /// The guest writes register `offset` (below 8).
    pub fn write(&self, offset: u8, value: u8) {
        let mut uart = lock(&self.uart);
        if let Err(error) = uart.write(offset, value) {
            log::error!("COM1: write failed: {error:?}");
        }
        if matches!(offset, IER | LCR | MCR) {
            uart.writer_mut().hand_on();
            self.feed(&mut uart);
        }
    }

    /// Hands on what is still waiting: the machine stops.
    pub fn flush(&self) {
        lock(&self.uart).writer_mut().hand_on();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    const LSR: u8 = 5;
    const DATA_READY: u8 = 1;

    fn port() -> (Arc<Com1>, Terminal, EventFd) {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let terminal = Terminal::new();
        (Com1::new(line.try_clone().unwrap(), &terminal), terminal, line)
    }

    #[test]
    fn output_is_handed_on_at_the_end_of_a_line_and_of_a_burst() {
        let (com1, terminal, _line) = port();
        let (_, live) = terminal.subscribe();
        b"ab\n".iter().for_each(|&byte| com1.write(DATA, byte));
        assert_eq!(&live.try_recv().unwrap()[..], b"ab\n");
        b"# ".iter().for_each(|&byte| com1.write(DATA, byte));
        assert!(live.try_recv().is_err());
        com1.read(IIR);
        assert_eq!(&live.try_recv().unwrap()[..], b"# ");
    }

    #[test]
    fn input_waits_until_the_driver_wants_it() {
        let (com1, terminal, _line) = port();
        terminal.push_input(b"ab");
        assert_eq!(com1.read(DATA), 0, "a driver that sets the port up reads nothing away");
        com1.write(IER, RECEIVE_INTERRUPT);
        assert_eq!((com1.read(DATA), com1.read(DATA)), (b'a', b'b'));
    }

    #[test]
    fn input_longer_than_the_fifo_arrives_whole_and_interrupts() {
        let (com1, terminal, line) = port();
        com1.write(IER, 1);
        let typed: Vec<u8> = (0..200).collect();
        assert_eq!(terminal.push_input(&typed), typed.len());
        assert!(line.read().is_ok(), "the receive interrupt");
        let mut seen = Vec::new();
        while com1.read(LSR) & DATA_READY != 0 {
            seen.push(com1.read(DATA));
        }
        assert_eq!(seen, typed);
    }
}
