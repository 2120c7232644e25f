use std::io::{self, Write};

/// Writes a `newc` archive (Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`). All is owned by root and
/// has modification time 0, so the same content gives the same bytes.
#[derive(Debug)]
pub struct Archive<W: Write> {
    out: W,
    inode: u32,
    written: u64,
}

/// Bits of `st_mode` that say what an entry is.
mod kind {
    pub const DIRECTORY: u32 = 0o040_000;
    pub const REGULAR: u32 = 0o100_000;
    pub const CHARACTER: u32 = 0o020_000;
    pub const SYMLINK: u32 = 0o120_000;
}

impl<W: Write> Archive<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Self {
        Self { out, inode: 0, written: 0 }
    }

    /// Adds a folder; parents come first.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn directory(&mut self, name: &str, permissions: u32) -> io::Result<()> {
        self.entry(name, kind::DIRECTORY | permissions, (0, 0), &[])
    }

    /// Adds a file.
    ///
    /// # Errors
    /// If it cannot be written, or `content` is 4 GiB or more, which the format cannot hold.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, kind::REGULAR | permissions, (0, 0), content)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn symlink(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, kind::SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn character(&mut self, name: &str, permissions: u32, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, kind::CHARACTER | permissions, (major, minor), &[])
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        self.inode += 1;
        self.header(name, self.inode, mode, device, content)
    }

    fn header(
        &mut self,
        name: &str,
        inode: u32,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| {
            io::Error::other(format!("{name} is too large for a cpio archive: {} bytes", content.len()))
        })?;
        let name_size = u32::try_from(name.len() + 1).map_err(|_| io::Error::other("name too long"))?;
        let links = if mode & kind::DIRECTORY != 0 && mode & kind::REGULAR == 0 { 2 } else { 1 };
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let zeros = [0; 3];
        let missing = (4 - self.written % 4) % 4;
        self.put(&zeros[..usize::try_from(missing).unwrap_or(0)])
    }

    /// Ends the archive and returns what it was written to.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.header("TRAILER!!!", 0, 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back by the format's rules: (name, mode, content).
    fn parse(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |i: usize| {
                u32::from_str_radix(std::str::from_utf8(&bytes[6 + 8 * i..14 + 8 * i]).unwrap(), 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            let start = (110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(bytes.len(), start);
                return entries;
            }
            entries.push((name, mode, bytes[start..start + size].to_vec()));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn what_was_written_is_read_back() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev", 0o755).unwrap();
        archive.character("dev/console", 0o600, 5, 1).unwrap();
        archive.file("init", 0o755, b"hello").unwrap();
        archive.symlink("sbin", "bin").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(
            parse(&bytes),
            [
                ("dev".to_owned(), 0o040_755, vec![]),
                ("dev/console".to_owned(), 0o020_600, vec![]),
                ("init".to_owned(), 0o100_755, b"hello".to_vec()),
                ("sbin".to_owned(), 0o120_777, b"bin".to_vec()),
            ]
        );
    }
}
