//! The machine under the KVM of this host, with guests of a few instructions at CPL 3: those run natively also where KVM
//! interprets kernel code. A host without KVM cannot run these tests, and they say so by failing.

use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use ssi_dsm::memory::{SliceFault, SliceKind, SliceMemory};
use vm_memory::{Bytes, GuestAddress};

use super::vm::assemble_for_test;
use super::*;
use crate::devices::lock;
use crate::devices::terminal::Terminal;
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice};
use crate::worker::Exit;

const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x30_0000;
/// Where a page fault goes in those machines that have a gate for it.
const HANDLER: u64 = 0x2_0000;
const WINDOW: u64 = 4 << 30;

/// Identity page tables that user code may use: the first GiB, the GiB of the MMIO windows, the GiB of slice 0.
fn write_user_tables(ram: &crate::devices::virtio::GuestRam) {
    const USER: u64 = 0b111;
    const HUGE: u64 = 1 << 7;
    let put = |value: u64, at: u64| ram.write_obj(value, GuestAddress(at)).unwrap();
    let base = layout::PAGE_TABLES;
    put((base + 0x1000) | USER, base);
    for (n, gib) in [(0, 0_u64), (1, 3), (2, 4)] {
        let directory = base + 0x2000 + n * 0x1000;
        put(directory | USER, base + 0x1000 + 8 * gib);
        for index in 0..512 {
            put((gib << 30) | (index << 21) | USER | HUGE, directory + 8 * index);
        }
    }
}

/// A machine whose first vCPU runs `code` at CPL 3, with I/O privileges.
fn machine(code: &[u8], vcpus: u8, devices: Vec<Box<dyn VirtioDevice>>) -> (Machine, Terminal, Exit) {
    let window = Arc::new(Mapping::anonymous(2 << 20).unwrap());
    machine_with(code, vcpus, devices, RamRegion::new(WINDOW, RamKind::Window, window))
}

fn machine_with(
    code: &[u8],
    vcpus: u8,
    devices: Vec<Box<dyn VirtioDevice>>,
    window: RamRegion,
) -> (Machine, Terminal, Exit) {
    machine_told(code, vcpus, devices, window, Arc::default())
}

/// The same; `lost_faults` as in [`Config`]. Page faults go to [`HANDLER`].
fn machine_told(
    code: &[u8],
    vcpus: u8,
    devices: Vec<Box<dyn VirtioDevice>>,
    window: RamRegion,
    lost_faults: Arc<AtomicBool>,
) -> (Machine, Terminal, Exit) {
    let (serial, exit) = (Terminal::new(), Exit::new().unwrap());
    let config = Config {
        name: "test".to_owned(),
        vcpus,
        async_pf: false,
        lost_faults,
        kernel: "none".into(),
        initrd: None,
        cmdline: String::new(),
        serial: serial.clone(),
        exit: exit.clone(),
    };
    let regions = vec![RamRegion::low(16 << 20).unwrap(), window];
    let machine = assemble_for_test(&config, regions, devices, |fd, ram| {
        write_user_tables(ram);
        ram.write_slice(code, GuestAddress(CODE)).unwrap();
        cpu::set_boot_state(fd, CODE).unwrap();
        let mut sregs = fd.get_sregs().unwrap();
        sregs.idt.limit = 15 * 16 - 1;
        for segment in [&mut sregs.cs, &mut sregs.ss, &mut sregs.ds, &mut sregs.es] {
            segment.dpl = 3;
            segment.selector |= 3;
        }
        fd.set_sregs(&sregs).unwrap();
        let mut regs = fd.get_regs().unwrap();
        // I/O privilege level 3.
        regs.rflags |= 3 << 12;
        regs.rsp = DATA;
        fd.set_regs(&regs).unwrap();
    })
    .unwrap();
    (machine, serial, exit)
}

fn wait(exit: &Exit) {
    use vmm_sys_util::poll::PollContext;
    let poll: PollContext<u32> = PollContext::new().unwrap();
    poll.add(exit, 0).unwrap();
    poll.wait().unwrap();
}

/// mov al, 0xfe; out 0x64, al
const RESET: [u8; 4] = [0xb0, 0xfe, 0xe6, 0x64];
/// jmp to itself
const SPIN: [u8; 2] = [0xeb, 0xfe];
/// mov dx, 0x3f8; mov al, '\n'; out dx, al; jmp to itself
const SAY_AND_SPIN: [u8; 9] = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'\n', 0xee, 0xeb, 0xfe];

#[test]
fn a_guest_that_resets_ends_cleanly_with_its_output_handed_on() {
    // mov dx, 0x3f8; mov al, 'h'; out dx, al; mov al, 'i'; out dx, al
    let mut code = vec![0x66, 0xba, 0xf8, 0x03, 0xb0, b'h', 0xee, 0xb0, b'i', 0xee];
    code.extend_from_slice(&RESET);
    let (mut machine, serial, exit) = machine(&code, 1, Vec::new());
    let (_, live) = serial.subscribe();
    machine.run().unwrap();
    wait(&exit);
    machine.stop();
    assert_eq!(machine.end(), Some(End::Reset));
    assert_eq!(&live.recv().unwrap()[..], b"hi");
}

#[test]
fn stop_gets_vcpus_out_of_an_endless_loop_and_out_of_their_wait_for_a_start() {
    let (mut machine, serial, exit) = machine(&SAY_AND_SPIN, 3, Vec::new());
    let (_, live) = serial.subscribe();
    machine.run().unwrap();
    live.recv().unwrap();
    machine.stop();
    assert_eq!(machine.end(), Some(End::Stopped));
    assert!(exit.is_triggered());
    machine.stop();
    assert!(machine.run().is_err(), "a machine runs once");
}

#[test]
fn dropping_a_running_machine_stops_it() {
    let (mut machine, serial, exit) = machine(&SAY_AND_SPIN, 1, Vec::new());
    let (_, live) = serial.subscribe();
    machine.run().unwrap();
    live.recv().unwrap();
    drop(machine);
    assert!(exit.is_triggered());
}

/// mov dx, 0x3f8; mov al, '\n'; out dx, al; mov dx, idle port; out dx, al; and a reset, for who does not sleep
fn say_and_sleep() -> Vec<u8> {
    let [low, high] = layout::IDLE_PORT.to_le_bytes();
    let mut code = SAY_AND_SPIN[..7].to_vec();
    code.extend_from_slice(&[0x66, 0xba, low, high, 0xee]);
    code.extend_from_slice(&RESET);
    code
}

#[test]
fn a_vcpu_that_writes_to_the_idle_port_sleeps_until_an_interrupt() {
    let (mut machine, serial, exit) = machine(&say_and_sleep(), 1, Vec::new());
    let (_, live) = serial.subscribe();
    machine.run().unwrap();
    live.recv().unwrap();
    // An NMI, for which this guest has no handler: it is what ends the sleep.
    const NMI: u32 = 4 << 8;
    let msi = kvm_bindings::kvm_msi { address_lo: 0xfee0_0000, data: NMI, ..Default::default() };
    machine.vm().signal_msi(msi).unwrap();
    wait(&exit);
    let Some(End::Failed(why)) = machine.end() else { panic!("{:?}", machine.end()) };
    assert!(why.contains("triple fault"), "{why}");
}

#[test]
fn a_sleeping_vcpu_can_be_stopped() {
    let (mut machine, serial, _) = machine(&say_and_sleep(), 1, Vec::new());
    let (_, live) = serial.subscribe();
    machine.run().unwrap();
    live.recv().unwrap();
    machine.stop();
    assert_eq!(machine.end(), Some(End::Stopped));
}

#[test]
fn a_triple_fault_is_a_failure_and_not_a_reset() {
    // ud2, with no handler for it
    let (mut machine, _, exit) = machine(&[0x0f, 0x0b], 1, Vec::new());
    machine.run().unwrap();
    wait(&exit);
    let Some(End::Failed(why)) = machine.end() else { panic!("{:?}", machine.end()) };
    assert!(why.contains("triple fault"), "{why}");
}

#[test]
fn a_guest_that_cannot_go_on_fails_with_where_it_was() {
    // mov eax, 0xd0000000; jmp rax: no code can be fetched from a window
    let (mut machine, _, exit) = machine(&[0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0], 1, Vec::new());
    machine.run().unwrap();
    wait(&exit);
    let Some(End::Failed(why)) = machine.end() else { panic!("{:?}", machine.end()) };
    assert!(why.contains("rip 0xd0000000"), "{why}");
}

#[test]
fn a_window_is_memory_for_the_guest() {
    // mov rax, 4 GiB; mov dword [rax + 0x1000], 0x5353
    let mut code = vec![0x48, 0xb8, 0, 0, 0, 0, 1, 0, 0, 0, 0xc7, 0x80, 0, 0x10, 0, 0, 0x53, 0x53, 0, 0];
    code.extend_from_slice(&RESET);
    let (mut machine, _, exit) = machine(&code, 1, Vec::new());
    machine.run().unwrap();
    wait(&exit);
    let ram = machine.ram().unwrap();
    assert_eq!(ram.read_obj::<u32>(GuestAddress(WINDOW + 0x1000)).unwrap(), 0x5353);
}

/// Waits until an access to the window waits for its page.
fn next_fault(window: &SliceMemory) -> SliceFault {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    // SAFETY: the descriptor is open as long as the window is borrowed.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(window.as_raw_fd()) };
    loop {
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
        if let Some(fault) = window.faults(1).unwrap().pop() {
            return fault;
        }
    }
}

#[test]
fn a_guest_waits_for_a_page_of_a_window_and_goes_on_when_it_is_there() {
    let window = Arc::new(SliceMemory::new(2 << 20, SliceKind::Window).unwrap());
    // mov rax, 4 GiB; mov ecx, [rax + 0x1000]; mov [DATA], ecx
    let mut code = vec![0x48, 0xb8, 0, 0, 0, 0, 1, 0, 0, 0, 0x8b, 0x88, 0, 0x10, 0, 0, 0x89, 0x0c, 0x25];
    code.extend_from_slice(&(DATA as u32).to_le_bytes());
    code.extend_from_slice(&RESET);
    let (mut machine, _, exit) = machine_with(&code, 1, Vec::new(), RamRegion::slice(WINDOW, window.clone()));
    machine.run().unwrap();
    let fault = next_fault(&window);
    assert_eq!(fault.index, 1);
    assert!(!exit.is_triggered());
    let mut page = [0; 4096];
    page[..4].copy_from_slice(&0x1234_5678_u32.to_le_bytes());
    window.store(1, &page).unwrap();
    window.install(1, fault.access).unwrap();
    wait(&exit);
    assert_eq!(machine.end(), Some(End::Reset));
    assert_eq!(machine.ram().unwrap().read_obj::<u32>(GuestAddress(DATA)).unwrap(), 0x1234_5678);
}

#[test]
fn a_guest_that_touches_lost_memory_fails_with_the_reason() {
    let window = Arc::new(SliceMemory::new(2 << 20, SliceKind::Window).unwrap());
    // mov rax, 4 GiB; mov ecx, [rax]
    let code = [&[0x48, 0xb8, 0, 0, 0, 0, 1, 0, 0, 0, 0x8b, 0x08][..], &SPIN].concat();
    let (mut machine, _, exit) = machine_with(&code, 1, Vec::new(), RamRegion::slice(WINDOW, window.clone()));
    machine.run().unwrap();
    next_fault(&window);
    window.poison(0).unwrap();
    wait(&exit);
    let Some(End::Failed(why)) = machine.end() else { panic!("{:?}", machine.end()) };
    assert!(why.contains("lost with the node"), "{why}");
}

/// Descriptors and a gate with which a page fault at CPL 3 is taken at CPL 3.
fn write_user_gate(ram: &crate::devices::virtio::GuestRam) {
    let put = |value: u64, at: u64| ram.write_obj(value, GuestAddress(at)).unwrap();
    let (code, data) = (0x00af_fb00_0000_ffff, 0x00cf_f300_0000_ffff);
    put(code, layout::GDT + 2 * 8);
    put(data, layout::GDT + 3 * 8);
    // A gate of 64-bit mode: offset 15:0, selector, present, DPL 3, interrupt gate; offset 31:16.
    let gate = HANDLER & 0xffff | (2 << 3 | 3) << 16 | 0xee << 40 | (HANDLER >> 16) << 48;
    put(gate, layout::IDT + 14 * 16);
    put(0, layout::IDT + 14 * 16 + 8);
}

#[test]
fn dsm_i4_a_guest_that_knows_of_lost_memory_takes_a_page_fault_where_it_touches_it() {
    let window = Arc::new(SliceMemory::new(2 << 20, SliceKind::Window).unwrap());
    // mov rax, 4 GiB + 0x1008; mov ecx, [rax]
    let code = [&[0x48, 0xb8, 8, 0x10, 0, 0, 1, 0, 0, 0, 0x8b, 0x08][..], &SPIN].concat();
    // pop rax; mov [DATA], rax; pop rax; mov [DATA + 8], rax; then where no code can be: its end says where it was
    let mut handler = vec![0x58, 0x48, 0x89, 0x04, 0x25];
    handler.extend_from_slice(&(DATA as u32).to_le_bytes());
    handler.extend_from_slice(&[0x58, 0x48, 0x89, 0x04, 0x25]);
    handler.extend_from_slice(&(DATA as u32 + 8).to_le_bytes());
    handler.extend_from_slice(&[0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0]);
    let known = Arc::new(AtomicBool::new(true));
    let region = RamRegion::slice(WINDOW, window.clone());
    let (mut machine, _, exit) = machine_told(&code, 1, Vec::new(), region, known);
    let ram = machine.ram().unwrap().clone();
    write_user_gate(&ram);
    ram.write_slice(&handler, GuestAddress(HANDLER)).unwrap();
    machine.run().unwrap();
    assert_eq!(next_fault(&window).index, 1);
    window.poison(1).unwrap();
    wait(&exit);
    let Some(End::Failed(why)) = machine.end() else { panic!("{:?}", machine.end()) };
    assert!(why.contains(&format!("cr2 {:#x}", WINDOW + 0x1000)), "{why}");
    let word = |at| ram.read_obj::<u64>(GuestAddress(at)).unwrap();
    assert_eq!(word(DATA), u64::from(ssi_proto::device::PF_LOST));
    assert_eq!(word(DATA + 8), CODE + 10, "the instruction that touched it");
}

/// Not a test: what the process of the next one does.
#[test]
#[ignore = "ends its process"]
fn touch_lost_memory() {
    let window = SliceMemory::new(2 << 20, SliceKind::Window).unwrap();
    window.poison(0).unwrap();
    lost::handle().unwrap();
    // SAFETY: the mapping is there; that the page is poisoned is the point.
    unsafe { window.guest_addr().read_volatile() };
}

#[test]
fn a_device_that_touches_lost_memory_ends_the_process_with_the_reason() {
    use std::os::unix::process::ExitStatusExt;
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "machine::tests::touch_lost_memory"])
        .output()
        .unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGBUS));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("guest memory that was lost"), "{said}");
}

#[test]
fn stop_gets_a_vcpu_out_of_its_wait_for_a_page() {
    let window = Arc::new(SliceMemory::new(2 << 20, SliceKind::Window).unwrap());
    // mov rax, 4 GiB; mov ecx, [rax]
    let code = [&[0x48, 0xb8, 0, 0, 0, 0, 1, 0, 0, 0, 0x8b, 0x08][..], &SPIN].concat();
    let (mut machine, _, _) = machine_with(&code, 1, Vec::new(), RamRegion::slice(WINDOW, window.clone()));
    machine.run().unwrap();
    next_fault(&window);
    machine.stop();
    assert_eq!(machine.end(), Some(End::Stopped));
}

#[derive(Debug)]
struct Probe {
    kicks: Arc<Mutex<Option<mpsc::Sender<Activation>>>>,
}

impl VirtioDevice for Probe {
    fn device_id(&self) -> u32 {
        0x1234
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &[8, 8]
    }
    fn read_config(&self, _: u64, _: &mut [u8]) {}
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        lock(&self.kicks).as_ref().unwrap().send(activation).unwrap();
        Ok(())
    }
    fn reset(&mut self) {}
}

/// Writes of registers of device `index`: mov eax, address; mov dword [rax], value
fn poke(index: u64, writes: &[(u64, u32)]) -> Vec<u8> {
    let mut code = Vec::new();
    for (register, value) in writes {
        let address = (layout::MMIO_BASE + index * layout::MMIO_WINDOW + register) as u32;
        code.push(0xb8);
        code.extend_from_slice(&address.to_le_bytes());
        code.extend_from_slice(&[0xc7, 0x00]);
        code.extend_from_slice(&value.to_le_bytes());
    }
    code
}

#[test]
fn a_driver_reaches_its_device_and_a_notification_its_queue_without_an_exit() {
    use crate::devices::virtio::mmio::registers::*;
    let (sender, started) = mpsc::channel();
    let probe =
        || Box::new(Probe { kicks: Arc::new(Mutex::new(Some(sender.clone()))) }) as Box<dyn VirtioDevice>;
    // mov eax, DEVICE_ID of window 1; mov ecx, [rax]; mov [DATA], ecx
    let mut code = vec![0xb8];
    code.extend_from_slice(&((layout::MMIO_BASE + layout::MMIO_WINDOW + DEVICE_ID) as u32).to_le_bytes());
    code.extend_from_slice(&[0x8b, 0x08, 0x89, 0x0c, 0x25]);
    code.extend_from_slice(&(DATA as u32).to_le_bytes());
    code.extend_from_slice(&poke(
        1,
        &[
            (STATUS, 1),
            (STATUS, 3),
            (DRIVER_FEATURES_SEL, 1),
            (DRIVER_FEATURES, 1),
            (STATUS, 11),
            (QUEUE_SEL, 1),
            (QUEUE_NUM, 8),
            (QUEUE_DESC_LOW, 0x40_0000),
            (QUEUE_DRIVER_LOW, 0x40_1000),
            (QUEUE_DEVICE_LOW, 0x40_2000),
            (QUEUE_READY, 1),
            (STATUS, 15),
            (QUEUE_NOTIFY, 1),
        ],
    ));
    code.extend_from_slice(&RESET);
    let (mut machine, _, exit) = machine(&code, 1, vec![probe(), probe()]);
    machine.run().unwrap();
    wait(&exit);
    assert_eq!(machine.end(), Some(End::Reset));
    assert_eq!(machine.ram().unwrap().read_obj::<u32>(GuestAddress(DATA)).unwrap(), 0x1234);
    let activation = started.recv().unwrap();
    assert!(activation.queues[0].is_none());
    let queue = activation.queues[1].as_ref().unwrap();
    assert_eq!(queue.kick.read().unwrap(), 1);
}

#[test]
fn configurations_that_are_no_machine_are_refused_with_the_reason() {
    let config = |vcpus| Config {
        name: "test".to_owned(),
        vcpus,
        async_pf: false,
        lost_faults: Arc::default(),
        kernel: "/no/such/vmlinux".into(),
        initrd: None,
        cmdline: String::new(),
        serial: Terminal::new(),
        exit: Exit::new().unwrap(),
    };
    let low = || RamRegion::low(16 << 20).unwrap();
    let probes = |count| (0..count).map(|_| Box::new(Probe { kicks: Arc::default() }) as _).collect();
    for (config, regions, devices, reason) in [
        (config(0), vec![low()], probes(0), "0 vCPUs"),
        (config(9), vec![low()], probes(0), "9 vCPUs"),
        (config(1), vec![low()], probes(12), "12 virtio devices"),
        (config(1), vec![], probes(0), "low RAM"),
        (config(1), vec![low(), low()], probes(0), "low RAM"),
        (config(1), vec![RamRegion::low(1 << 20).unwrap()], probes(0), "low RAM"),
        (config(1), vec![low()], probes(0), "/no/such/vmlinux"),
    ] {
        let error = Machine::new(&config, regions, devices).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}
