use std::sync::Arc;
use std::sync::Mutex;

use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

use super::MmioTransport;
use super::registers::*;
use crate::devices::lock;
use crate::devices::virtio::testing::{RAM_BYTES, Rings, ram};
use crate::devices::virtio::{ActivateError, Activation, DeviceInterrupt, VirtioDevice};

#[derive(Debug, Default)]
struct Seen {
    activations: u32,
    resets: u32,
    features: u64,
    ready: Vec<bool>,
    interrupt: Option<Arc<dyn DeviceInterrupt>>,
    kicks: Vec<EventFd>,
    refuse: bool,
    config: [u8; 8],
}

/// A device that offers features 5 and 40, has two queues, and 8 bytes of writable configuration.
#[derive(Debug)]
struct Probe(Arc<Mutex<Seen>>);

const FEATURES: u64 = 1 << 5 | 1 << 40;

impl VirtioDevice for Probe {
    fn device_id(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        FEATURES
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = lock(&self.0).config;
        for (index, byte) in data.iter_mut().enumerate() {
            *byte =
                offset.checked_add(index as u64).and_then(|at| config.get(at as usize)).copied().unwrap_or(0);
        }
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (index, byte) in data.iter().enumerate() {
            if let Some(to) = lock(&self.0).config.get_mut((offset as usize).saturating_add(index)) {
                *to = *byte;
            }
        }
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut seen = lock(&self.0);
        if seen.refuse {
            return Err(ActivateError::QueueMissing(0));
        }
        seen.activations += 1;
        seen.features = activation.features;
        seen.ready = activation.queues.iter().map(Option::is_some).collect();
        seen.kicks = activation.queues.into_iter().flatten().map(|queue| queue.kick).collect();
        seen.interrupt = Some(activation.interrupt);
        Ok(())
    }
    fn reset(&mut self) {
        lock(&self.0).resets += 1;
    }
}

struct Window {
    transport: MmioTransport,
    seen: Arc<Mutex<Seen>>,
}

impl Window {
    fn new() -> Self {
        let seen = Arc::default();
        let transport = MmioTransport::new(Box::new(Probe(Arc::clone(&seen))), ram()).unwrap();
        Self { transport, seen }
    }

    fn get(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    fn add_status(&mut self, bits: u32) {
        let status = self.get(STATUS);
        self.set(STATUS, status | bits);
    }

    fn accept(&mut self, features: u64) {
        for (sel, half) in [(0, features), (1, features >> 32)] {
            self.set(DRIVER_FEATURES_SEL, sel);
            self.set(DRIVER_FEATURES, (half & 0xffff_ffff) as u32);
        }
    }

    /// Steps 1 to 6 of section 3.1.1.
    fn negotiate(&mut self) {
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        self.accept(F_VERSION_1);
        self.add_status(FEATURES_OK);
        assert_eq!(self.get(STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    fn lay_out(&mut self, index: u32, size: u32, base: u64) {
        let rings = Rings::new(&ram(), 0, 16);
        self.set(QUEUE_SEL, index);
        self.set(QUEUE_NUM, size);
        for (low, high, address) in [
            (QUEUE_DESC_LOW, QUEUE_DESC_HIGH, base + rings.desc_table()),
            (QUEUE_DRIVER_LOW, QUEUE_DRIVER_HIGH, base + rings.avail_ring()),
            (QUEUE_DEVICE_LOW, QUEUE_DEVICE_HIGH, base + rings.used_ring()),
        ] {
            self.set(low, (address & 0xffff_ffff) as u32);
            self.set(high, (address >> 32) as u32);
        }
    }

    fn start(&mut self) {
        self.negotiate();
        for index in 0..2 {
            self.lay_out(index, 8, 0x1_0000 * (u64::from(index) + 1));
            self.set(QUEUE_READY, 1);
        }
        self.add_status(DRIVER_OK);
    }
}

#[test]
fn verify_spec_4_2_2_1_magic_version_and_identity() {
    let window = Window::new();
    assert_eq!(window.get(MAGIC_VALUE), 0x7472_6976);
    assert_eq!(window.get(VERSION), 2);
    assert_eq!(window.get(DEVICE_ID), 42);
    assert_eq!(window.get(STATUS), 0);
}

#[test]
fn verify_spec_4_2_2_features_are_shown_32_at_a_time() {
    let mut window = Window::new();
    let offered = FEATURES | F_VERSION_1;
    for (sel, half) in [(0, offered & 0xffff_ffff), (1, offered >> 32), (2, 0), (u32::MAX, 0)] {
        window.set(DEVICE_FEATURES_SEL, sel);
        assert_eq!(u64::from(window.get(DEVICE_FEATURES)), half);
    }
}

#[test]
fn verify_spec_2_2_2_features_that_were_not_offered_are_refused() {
    for (features, accepted) in [
        (F_VERSION_1, true),
        (F_VERSION_1 | FEATURES, true),
        (F_VERSION_1 | 1 << 6, false),
        (F_VERSION_1 | 1 << 63, false),
    ] {
        let mut window = Window::new();
        window.add_status(ACKNOWLEDGE);
        window.add_status(DRIVER);
        window.accept(features);
        window.add_status(FEATURES_OK);
        assert_eq!(window.get(STATUS) & FEATURES_OK != 0, accepted, "{features:#x}");
    }
}

#[test]
fn verify_spec_6_2_a_driver_without_version_1_is_refused() {
    let mut window = Window::new();
    window.add_status(ACKNOWLEDGE);
    window.add_status(DRIVER);
    window.accept(FEATURES);
    window.add_status(FEATURES_OK);
    assert_eq!(window.get(STATUS), ACKNOWLEDGE | DRIVER);
}

#[test]
fn verify_spec_3_1_1_the_device_starts_with_what_was_agreed() {
    let mut window = Window::new();
    window.start();
    let seen = lock(&window.seen);
    assert_eq!((seen.activations, seen.features), (1, F_VERSION_1));
    assert_eq!(seen.ready, [true, true]);
}

#[test]
fn verify_spec_3_1_1_driver_ok_needs_features_ok() {
    let mut window = Window::new();
    window.add_status(ACKNOWLEDGE | DRIVER);
    window.add_status(DRIVER_OK);
    assert_eq!(window.get(STATUS), ACKNOWLEDGE | DRIVER);
    assert_eq!(lock(&window.seen).activations, 0);
}

#[test]
fn verify_spec_2_1_1_status_bits_are_only_taken_back_by_a_reset() {
    let mut window = Window::new();
    window.start();
    let status = window.get(STATUS);
    window.set(STATUS, DRIVER);
    assert_eq!(window.get(STATUS), status);
    window.set(STATUS, 0);
    assert_eq!(window.get(STATUS), 0);
}

#[test]
fn verify_spec_2_1_2_a_device_that_cannot_start_asks_for_a_reset_and_interrupts() {
    let mut window = Window::new();
    lock(&window.seen).refuse = true;
    window.start();
    assert_ne!(window.get(STATUS) & DEVICE_NEEDS_RESET, 0);
    assert_eq!(window.get(INTERRUPT_STATUS), INTERRUPT_CONFIG);
    assert!(window.transport.line().read().is_ok());
    window.set(STATUS, 0);
    lock(&window.seen).refuse = false;
    window.start();
    assert_eq!(lock(&window.seen).activations, 1, "after a reset it can start");
}

#[test]
fn verify_spec_4_2_3_2_queue_registers_show_size_and_readiness_of_the_selected_queue() {
    let mut window = Window::new();
    window.negotiate();
    for (index, max) in [(0, 16), (1, 8), (2, 0), (u32::MAX, 0)] {
        window.set(QUEUE_SEL, index);
        assert_eq!(window.get(QUEUE_NUM_MAX), max);
        assert_eq!(window.get(QUEUE_READY), 0);
    }
    window.lay_out(1, 8, 0x1_0000);
    window.set(QUEUE_READY, 1);
    assert_eq!(window.get(QUEUE_READY), 1);
    window.set(QUEUE_SEL, 0);
    assert_eq!(window.get(QUEUE_READY), 0);
}

#[test]
fn verify_spec_2_7_a_queue_of_invalid_size_or_place_does_not_become_ready() {
    for (size, base) in [
        (0, 0x1_0000),
        (7, 0x1_0000),
        (32, 0x1_0000),
        (0x1_0008, 0x1_0000),
        (8, RAM_BYTES),
        (8, RAM_BYTES - 0x5001),
        (8, 0x1_0001),
        (8, u64::MAX - 0x5fff),
    ] {
        let mut window = Window::new();
        window.negotiate();
        window.lay_out(0, size, base);
        window.set(QUEUE_READY, 1);
        assert_eq!(window.get(QUEUE_READY), 0, "size {size} at {base:#x}");
        window.add_status(DRIVER_OK);
        assert_eq!(lock(&window.seen).ready, [false, false]);
    }
}

#[test]
fn verify_spec_4_2_3_2_a_ready_queue_keeps_its_layout() {
    let mut window = Window::new();
    window.negotiate();
    window.lay_out(0, 8, 0x1_0000);
    window.set(QUEUE_READY, 1);
    window.lay_out(0, 7, RAM_BYTES);
    window.set(QUEUE_READY, 1);
    assert_eq!(window.get(QUEUE_READY), 1);
    window.set(QUEUE_READY, 0);
    assert_eq!(window.get(QUEUE_READY), 0);
}

#[test]
fn verify_spec_4_2_3_3_a_notification_kicks_the_queue_that_it_names() {
    let mut window = Window::new();
    window.set(QUEUE_NOTIFY, 1);
    assert!(window.transport.kicks().all(|kick| kick.read().is_err()), "not before DRIVER_OK");
    window.start();
    window.set(QUEUE_NOTIFY, 1);
    window.set(QUEUE_NOTIFY, 2);
    let seen = lock(&window.seen);
    assert!(seen.kicks[0].read().is_err());
    assert_eq!(seen.kicks[1].read().unwrap(), 1);
}

#[test]
fn verify_spec_4_2_2_1_events_stay_in_interrupt_status_until_acknowledged() {
    let mut window = Window::new();
    window.start();
    let interrupt = lock(&window.seen).interrupt.clone().unwrap();
    interrupt.used(0);
    interrupt.config_changed();
    assert_eq!(window.get(INTERRUPT_STATUS), INTERRUPT_USED | INTERRUPT_CONFIG);
    window.set(INTERRUPT_ACK, INTERRUPT_USED);
    assert_eq!(window.get(INTERRUPT_STATUS), INTERRUPT_CONFIG);
    window.set(INTERRUPT_ACK, INTERRUPT_CONFIG);
    assert_eq!(window.get(INTERRUPT_STATUS), 0);
}

#[test]
fn every_event_pulses_the_line_even_if_the_last_one_is_not_acknowledged() {
    let mut window = Window::new();
    window.start();
    let interrupt = lock(&window.seen).interrupt.clone().unwrap();
    for _ in 0..2 {
        interrupt.used(0);
        assert!(window.transport.line().read().is_ok());
    }
}

#[test]
fn verify_spec_4_2_2_1_reset_clears_interrupts_and_readiness_and_resets_the_device() {
    let mut window = Window::new();
    window.start();
    lock(&window.seen).interrupt.clone().unwrap().used(0);
    window.set(QUEUE_NOTIFY, 0);
    window.set(STATUS, 0);
    assert_eq!(window.get(INTERRUPT_STATUS), 0);
    assert!(window.transport.kicks().all(|kick| kick.read().is_err()), "an old notification is forgotten");
    for index in 0..2 {
        window.set(QUEUE_SEL, index);
        assert_eq!(window.get(QUEUE_READY), 0);
    }
    assert_eq!(lock(&window.seen).resets, 1);
    window.start();
    assert_eq!(lock(&window.seen).activations, 2);
}

#[test]
fn verify_spec_4_2_2_1_config_generation_changes_with_the_configuration() {
    let mut window = Window::new();
    window.start();
    let before = window.get(CONFIG_GENERATION);
    lock(&window.seen).interrupt.clone().unwrap().config_changed();
    assert_ne!(window.get(CONFIG_GENERATION), before);
}

#[test]
fn verify_spec_4_2_2_2_registers_are_32_bits_wide_and_configuration_is_not() {
    let mut window = Window::new();
    for width in [1, 2, 8] {
        let mut data = vec![0xaa; width];
        window.transport.read(MAGIC_VALUE, &mut data);
        assert_eq!(data, vec![0; width]);
        window.transport.write(STATUS, &vec![1; width]);
        assert_eq!(window.get(STATUS), 0);
    }
    window.add_status(ACKNOWLEDGE | DRIVER);
    window.transport.write(CONFIG + 1, &[0x77]);
    let mut eight = [0; 8];
    window.transport.read(CONFIG, &mut eight);
    assert_eq!(eight, [0, 0x77, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn verify_spec_4_2_2_there_is_no_shared_memory_region() {
    let mut window = Window::new();
    window.set(SHM_SEL, 0);
    for register in (SHM_LEN_LOW..=SHM_BASE_HIGH).step_by(4) {
        assert_eq!(window.get(register), u32::MAX);
    }
}

#[test]
fn a_driver_that_gave_up_can_only_reset() {
    let mut window = Window::new();
    window.add_status(ACKNOWLEDGE | DRIVER);
    window.add_status(FAILED);
    window.accept(F_VERSION_1);
    window.add_status(FEATURES_OK);
    assert_eq!(window.get(STATUS), ACKNOWLEDGE | DRIVER | FAILED);
    window.set(STATUS, 0);
    window.start();
    assert_eq!(lock(&window.seen).activations, 1);
}

#[derive(Debug, Clone)]
enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Start,
}

fn access() -> impl Strategy<Value = Access> {
    let register =
        prop_oneof![4 => (0_u64..0x44).prop_map(|n| n * 4), 1 => 0..WINDOW_BYTES, 1 => CONFIG..CONFIG + 16];
    let word = prop_oneof![
        2 => prop_oneof![Just(0_u32), Just(1), Just(3), Just(7), Just(11), Just(15), Just(0x1_0000), Just(8)],
        1 => any::<u32>(),
    ];
    prop_oneof![
        2 => (register.clone(), prop_oneof![Just(1_usize), Just(2), Just(4), Just(8)])
            .prop_map(|(at, width)| Access::Read(at, width)),
        6 => (register.clone(), word).prop_map(|(at, word)| Access::Write(at, word.to_le_bytes().to_vec())),
        1 => (register, proptest::collection::vec(any::<u8>(), 1..=8)).prop_map(|(at, data)| Access::Write(at, data)),
        1 => Just(Access::Start),
    ]
}

proptest! {
    /// Whatever a driver writes, in whatever order: nothing panics, a device is active only in DRIVER_OK, with features
    /// that it offered, and as often reset as started (or once more).
    #[test]
    fn no_sequence_of_accesses_breaks_the_state_machine(accesses in proptest::collection::vec(access(), 1..200)) {
        let mut window = Window::new();
        for access in accesses {
            match access {
                Access::Read(at, width) => window.transport.read(at, &mut vec![0; width]),
                Access::Write(at, data) => window.transport.write(at, &data),
                Access::Start => {
                    window.set(STATUS, 0);
                    window.start();
                }
            }
            let status = window.get(STATUS);
            let seen = lock(&window.seen);
            prop_assert!(seen.activations <= seen.resets + 1);
            if status & DRIVER_OK != 0 {
                prop_assert!(status & FEATURES_OK != 0);
                prop_assert_eq!(seen.features & !(FEATURES | F_VERSION_1), 0);
                prop_assert_ne!(seen.features & F_VERSION_1, 0);
            }
        }
    }
}
