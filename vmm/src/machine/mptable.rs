//! The tables of the MultiProcessor Specification 1.4, from which Linux without ACPI learns of its processors, its
//! IO-APIC and the wiring of the ISA interrupts.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const APIC_DEFAULT_BASE: u32 = 0xfee0_0000;
const IO_APIC_BASE: u32 = 0xfec0_0000;
const APIC_VERSION: u8 = 0x14;
const SPEC: u8 = 4;
const ISA_LINES: u8 = 16;

const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

/// Interrupt types of an entry.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

fn close(table: &mut [u8], checksum_at: usize) {
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    table[checksum_at] = 0_u8.wrapping_sub(sum);
}

/// The configuration table for `vcpus` processors (at most 8), whose APIC numbers are their indices.
fn configuration(vcpus: u8) -> Vec<u8> {
    let io_apic_id = vcpus;
    let mut entries: Vec<u8> = Vec::new();
    let mut count = 0_u16;
    let mut push = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..vcpus {
        // Enabled; the first one boots.
        let flags = if id == 0 { 0b11 } else { 0b01 };
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[PROCESSOR, id, APIC_VERSION, flags]);
        // Signature and features are those of CPUID; Linux reads them there.
        entry[4..8].copy_from_slice(&0x600_u32.to_le_bytes());
        entry[8..12].copy_from_slice(&0x201_u32.to_le_bytes());
        push(&entry);
    }
    push(b"\x01\x00ISA   ".as_slice());
    let mut io_apic = [IO_APIC, io_apic_id, APIC_VERSION, 1, 0, 0, 0, 0];
    io_apic[4..].copy_from_slice(&IO_APIC_BASE.to_le_bytes());
    push(&io_apic);
    // Polarity and trigger as the bus has them: ISA lines are edge-triggered, which is how irqfd pulses them.
    for line in 0..ISA_LINES {
        push(&[IO_INTERRUPT, INT, 0, 0, 0, line, io_apic_id, line]);
    }
    push(&[LOCAL_INTERRUPT, EXT_INT, 0, 0, 0, 0, 0, 0]);
    push(&[LOCAL_INTERRUPT, NMI, 0, 0, 0, 0, 0xff, 1]);
    debug_assert_eq!(BUS, 1);

    let mut table = Vec::with_capacity(44 + entries.len());
    table.extend_from_slice(b"PCMP");
    table.extend_from_slice(&u16::try_from(44 + entries.len()).unwrap_or(u16::MAX).to_le_bytes());
    table.extend_from_slice(&[SPEC, 0]);
    table.extend_from_slice(b"SSIVMM  ");
    table.extend_from_slice(b"CELL        ");
    table.extend_from_slice(&[0; 6]);
    table.extend_from_slice(&count.to_le_bytes());
    table.extend_from_slice(&APIC_DEFAULT_BASE.to_le_bytes());
    table.extend_from_slice(&[0; 4]);
    table.extend_from_slice(&entries);
    close(&mut table, 7);
    table
}

/// The floating pointer structure and the configuration table, as they lie at `at` (16-byte aligned).
fn tables(at: u32, vcpus: u8) -> Vec<u8> {
    let mut all = vec![0; 16];
    all[..4].copy_from_slice(b"_MP_");
    all[4..8].copy_from_slice(&(at + 16).to_le_bytes());
    all[8] = 1;
    all[9] = SPEC;
    close(&mut all, 10);
    all.extend_from_slice(&configuration(vcpus));
    all
}

/// Writes the tables for `vcpus` processors at `at`, in the first KiB of the extended BIOS data area, where Linux
/// looks for them.
pub(super) fn write(ram: &GuestMemoryMmap<()>, at: u64, vcpus: u8) -> Result<(), String> {
    let address = u32::try_from(at).map_err(|error| error.to_string())?;
    let tables = tables(address, vcpus);
    if tables.len() > 1024 {
        return Err(format!("an MP table of {} bytes does not fit 1 KiB", tables.len()));
    }
    ram.write_slice(&tables, GuestAddress(at)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn tables_carry_valid_checksums_and_lengths_for_1_to_8_processors() {
        for vcpus in 1..=8 {
            let all = tables(0x9_fc00, vcpus);
            assert!(all.len() <= 1024);
            assert_eq!(&all[..4], b"_MP_");
            assert_eq!(sum(&all[..16]), 0);
            let table = &all[16..];
            assert_eq!(&table[..4], b"PCMP");
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            assert_eq!(sum(table), 0);
        }
    }

    #[test]
    fn entries_are_as_long_as_their_type_says_and_as_many_as_counted() {
        let table = configuration(3);
        let counted = u16::from_le_bytes([table[34], table[35]]);
        let (mut at, mut seen, mut processors) = (44, 0, Vec::new());
        while at < table.len() {
            if table[at] == PROCESSOR {
                processors.push((table[at + 1], table[at + 3]));
            }
            at += if table[at] == PROCESSOR { 20 } else { 8 };
            seen += 1;
        }
        assert_eq!(at, table.len());
        assert_eq!(seen, counted);
        assert_eq!(processors, [(0, 3), (1, 1), (2, 1)]);
    }
}
