//! Port and MMIO accesses of the vCPUs, to the devices.

use std::sync::{Arc, Mutex};

use super::layout::{IDLE_PORT, MMIO_BASE, MMIO_WINDOW};
use crate::devices::lock;
use crate::devices::serial::{COM1_BASE, COM1_PORTS, Com1};
use crate::devices::virtio::mmio::MmioTransport;
use crate::guest_warn;

const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;

/// What an access asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Nothing: go on.
    Nothing,
    /// Reset: the guest pulled the reset line of the keyboard controller.
    Reset,
    /// Sleep until the next interrupt of the vCPU that asks.
    Idle,
}

/// All devices that vCPUs reach by exits.
#[derive(Debug)]
pub(super) struct Bus {
    com1: Arc<Com1>,
    windows: Vec<Mutex<MmioTransport>>,
}

impl Bus {
    pub fn new(com1: Arc<Com1>, windows: Vec<MmioTransport>) -> Self {
        Self { com1, windows: windows.into_iter().map(Mutex::new).collect() }
    }

    /// Number of virtio-mmio windows.
    pub fn windows_count(&self) -> usize {
        self.windows.len()
    }

    /// Resets every device: their threads have ended on return.
    pub fn reset(&self) {
        for window in &self.windows {
            lock(window).reset();
        }
        self.com1.flush();
    }

    fn com1_register(port: u16) -> Option<u8> {
        port.checked_sub(COM1_BASE).filter(|register| *register < COM1_PORTS).map(|register| register as u8)
    }

    /// A read of a port; `data` may hold several accesses of one byte.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        match (Self::com1_register(port), port) {
            (Some(register), _) => data.iter_mut().for_each(|byte| *byte = self.com1.read(register)),
            // Nothing is pending in the keyboard controller.
            (None, I8042_COMMAND) => data.fill(0),
            // Nobody drives the bus.
            _ => data.fill(0xff),
        }
    }

    /// A write of a port; `data` may hold several accesses of one byte.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Asked {
        if let Some(register) = Self::com1_register(port) {
            data.iter().for_each(|byte| self.com1.write(register, *byte));
        } else if port == I8042_COMMAND && data.contains(&I8042_RESET) {
            return Asked::Reset;
        } else if port == IDLE_PORT {
            return Asked::Idle;
        }
        Asked::Nothing
    }

    fn window(&self, address: u64) -> Option<(&Mutex<MmioTransport>, u64)> {
        let offset = address.checked_sub(MMIO_BASE)?;
        let window = self.windows.get(usize::try_from(offset / MMIO_WINDOW).ok()?)?;
        Some((window, offset % MMIO_WINDOW))
    }

    /// A read outside of guest memory.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.window(address) {
            Some((window, offset)) => lock(window).read(offset, data),
            None => {
                guest_warn!("read of {} bytes at {address:#x}, where nothing is", data.len());
                data.fill(0xff);
            }
        }
    }

    /// A write outside of guest memory.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        match self.window(address) {
            Some((window, offset)) => lock(window).write(offset, data),
            None => guest_warn!("write of {} bytes at {address:#x}, where nothing is", data.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::terminal::Terminal;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    fn bus() -> (Bus, Terminal) {
        let terminal = Terminal::new();
        let com1 = Com1::new(EventFd::new(EFD_NONBLOCK).unwrap(), &terminal);
        (Bus::new(com1, Vec::new()), terminal)
    }

    #[test]
    fn com1_gets_its_eight_ports_and_no_more() {
        let (bus, terminal) = bus();
        let (_, live) = terminal.subscribe();
        assert_eq!(bus.port_write(COM1_BASE, b"hi\n"), Asked::Nothing);
        assert_eq!(&live.try_recv().unwrap()[..], b"hi\n");
        let mut byte = [0];
        bus.port_read(COM1_BASE + COM1_PORTS, &mut byte);
        assert_eq!(byte, [0xff]);
        bus.port_read(COM1_BASE + COM1_PORTS - 1, &mut byte);
        assert_ne!(byte, [0xff]);
    }

    #[test]
    fn the_reset_line_of_the_keyboard_controller_asks_for_a_reset() {
        let (bus, _) = bus();
        assert_eq!(bus.port_write(0x64, &[0xfe]), Asked::Reset);
        assert_eq!(bus.port_write(0x64, &[0xd1]), Asked::Nothing);
        assert_eq!(bus.port_write(0x60, &[0xfe]), Asked::Nothing);
    }

    #[test]
    fn the_idle_port_asks_for_sleep() {
        let (bus, _) = bus();
        assert_eq!(bus.port_write(IDLE_PORT, &[0]), Asked::Idle);
        assert_eq!(bus.port_write(IDLE_PORT + 1, &[0]), Asked::Nothing);
    }

    #[test]
    fn an_access_where_nothing_is_reads_ones_and_changes_nothing() {
        let (bus, _) = bus();
        for address in [0, MMIO_BASE - 1, MMIO_BASE, u64::MAX] {
            let mut data = [0; 4];
            bus.mmio_write(address, &data);
            bus.mmio_read(address, &mut data);
            assert_eq!(data, [0xff; 4], "{address:#x}");
        }
    }
}
