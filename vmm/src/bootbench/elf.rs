use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::KernelFormat;

/// The note with the kernel's 32-bit entry (Xen, `public/elfnote.h`, `XEN_ELFNOTE_PHYS32_ENTRY`), by which PVH starts it.
const PVH_NAME: &[u8] = b"Xen\0";
const PVH_TYPE: u32 = 18;
/// `p_type` of notes.
const PT_NOTE: u32 = 4;
/// Bytes of an ELF-64 header and of a program header.
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Notes of a kernel are some hundred bytes.
const NOTES_MAX: u64 = 1 << 20;

/// The format in which QEMU's microvm loads the kernel at `path`, an ELF file: that file if it has a PVH entry, else its bzImage.
///
/// # Errors
/// If it cannot be read or is no 64-bit ELF file.
pub fn format_for_qemu(path: &Path) -> io::Result<KernelFormat> {
    Ok(if has_pvh_entry(&mut File::open(path)?)? { KernelFormat::Pvh } else { KernelFormat::BzImage })
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> io::Result<[u8; N]> {
    let field = bytes.get(at..at + N).and_then(|field| field.try_into().ok());
    field.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel's ELF headers are cut off"))
}

fn has_pvh_entry(file: &mut (impl Read + Seek)) -> io::Result<bool> {
    let mut header = [0; HEADER];
    file.read_exact(&mut header)?;
    // Class 2: 64 bits; data 1: little-endian.
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel is no 64-bit ELF file"));
    }
    let (start, count) = (u64::from_le_bytes(field(&header, 32)?), u16::from_le_bytes(field(&header, 56)?));
    let mut headers = vec![0; usize::from(count) * PROGRAM_HEADER];
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut headers)?;
    for header in headers.chunks_exact(PROGRAM_HEADER) {
        if u32::from_le_bytes(field(header, 0)?) != PT_NOTE {
            continue;
        }
        let (offset, len) = (u64::from_le_bytes(field(header, 8)?), u64::from_le_bytes(field(header, 32)?));
        let mut notes = Vec::new();
        file.seek(SeekFrom::Start(offset))?;
        file.take(len.min(NOTES_MAX)).read_to_end(&mut notes)?;
        if has_pvh_note(&notes) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Notes are triples: the lengths of name and content and a type; the name; the content; both padded to 4 bytes.
fn has_pvh_note(mut notes: &[u8]) -> bool {
    let word = |notes: &[u8], at| field(notes, at).map(u32::from_le_bytes).map(|word| word as usize);
    while let (Ok(name_len), Ok(len), Ok(kind)) = (word(notes, 0), word(notes, 4), word(notes, 8)) {
        let name_end = 12_usize.saturating_add(name_len);
        if kind == PVH_TYPE as usize && notes.get(12..name_end) == Some(PVH_NAME) {
            return true;
        }
        let next = 12_usize.saturating_add(name_len.div_ceil(4) * 4).saturating_add(len.div_ceil(4) * 4);
        notes = notes.get(next..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn note(name: &str, kind: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let words = [u32::try_from(name.len() + 1).unwrap(), u32::try_from(content.len()).unwrap(), kind];
        words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        for part in [[name.as_bytes(), &[0]].concat(), content.to_vec()] {
            bytes.extend(&part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    /// A kernel with one segment of this type, with these notes in it.
    fn kernel(segment: u32, notes: &[u8]) -> Cursor<Vec<u8>> {
        let mut bytes = vec![0; HEADER + PROGRAM_HEADER];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[56..58].copy_from_slice(&1_u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&segment.to_le_bytes());
        bytes[72..80].copy_from_slice(&120_u64.to_le_bytes());
        bytes[96..104].copy_from_slice(&(notes.len() as u64).to_le_bytes());
        bytes.extend(notes);
        Cursor::new(bytes)
    }

    #[test]
    fn a_pvh_entry_is_found_behind_notes_of_odd_lengths() {
        let notes = [note("Linux", 1, &[0]), note("GNU", 3, &[1; 7]), note("Xen", 18, &[0; 8])].concat();
        assert!(has_pvh_entry(&mut kernel(PT_NOTE, &notes)).unwrap());
    }

    #[test]
    fn notes_of_others_and_other_notes_of_xen_are_no_pvh_entry() {
        for notes in [note("GNU", 18, &[0; 8]), note("Xen", 19, &[0; 12]), vec![], vec![0xff; 40]] {
            assert!(!has_pvh_entry(&mut kernel(PT_NOTE, &notes)).unwrap(), "{notes:?}");
        }
        assert!(!has_pvh_entry(&mut kernel(1, &note("Xen", 18, &[0; 8]))).unwrap(), "not in a note segment");
    }

    #[test]
    fn what_is_no_whole_elf_file_is_an_error() {
        let whole = kernel(PT_NOTE, &[]).into_inner();
        for bytes in [&b"MZ"[..], &[0; 64], &whole[..100]] {
            assert!(has_pvh_entry(&mut Cursor::new(bytes.to_vec())).is_err());
        }
    }
}
