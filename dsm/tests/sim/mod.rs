//! Simulated memory: pages whose rights a simulator enforces.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use ssi_dsm::Access;
use ssi_dsm::driver::Memory;

pub const PAGE_BYTES: usize = 4096;
/// What memory that was given back holds.
pub const GARBAGE: u8 = 0xee;

#[derive(Debug, Clone, Default)]
pub struct Frame {
    pub rights: Option<Access>,
    pub poisoned: bool,
    /// `None`: zeroes.
    pub bytes: Option<Box<[u8; PAGE_BYTES]>>,
}

impl Frame {
    pub fn word(&self, offset: usize) -> u64 {
        let bytes = self.bytes.as_ref().and_then(|b| b[offset..].first_chunk());
        bytes.map_or(0, |b| u64::from_le_bytes(*b))
    }

    pub fn set_word(&mut self, offset: usize, value: u64) {
        let bytes = self.bytes.get_or_insert_with(|| Box::new([0; PAGE_BYTES]));
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }
}

#[derive(Debug, Default)]
pub struct Slice {
    pub frames: Vec<Frame>,
    pub woken: Vec<usize>,
}

/// Memory whose faults the simulator makes.
#[derive(Debug, Clone, Default)]
pub struct Fake(pub Rc<RefCell<Slice>>);

impl Fake {
    pub fn new(pages: usize, own: bool) -> Self {
        let frame = Frame { rights: own.then_some(Access::Write), ..Frame::default() };
        Self(Rc::new(RefCell::new(Slice { frames: vec![frame; pages], woken: vec![] })))
    }

    fn set(
        &self,
        index: usize,
        rights: impl FnOnce(&Frame) -> Option<Access>,
        wakes: bool,
    ) -> Result<(), Infallible> {
        let mut slice = self.0.borrow_mut();
        slice.frames[index].rights = rights(&slice.frames[index]);
        if wakes {
            slice.woken.push(index);
        }
        Ok(())
    }
}

impl Memory for Fake {
    type Error = Infallible;

    fn pages(&self) -> usize {
        self.0.borrow().frames.len()
    }
    fn protect(&self, index: usize) -> Result<(), Infallible> {
        self.set(index, |f| f.rights.map(|_| Access::Read), false)
    }
    fn unprotect(&self, index: usize) -> Result<(), Infallible> {
        self.set(index, |f| f.rights.map(|_| Access::Write), true)
    }
    fn zap(&self, index: usize) -> Result<(), Infallible> {
        self.set(index, |_| None, false)
    }
    fn install(&self, index: usize, access: Access) -> Result<(), Infallible> {
        self.set(index, |_| Some(access), true)
    }
    fn poison(&self, index: usize) -> Result<(), Infallible> {
        self.0.borrow_mut().frames[index].poisoned = true;
        self.set(index, |_| None, true)
    }
    fn discard(&self, index: usize) -> Result<(), Infallible> {
        let frame = &mut self.0.borrow_mut().frames[index];
        assert_eq!(frame.rights, None, "memory that is in use");
        frame.bytes = Some(Box::new([GARBAGE; PAGE_BYTES]));
        Ok(())
    }
    fn read(&self, index: usize, bytes: &mut [u8; PAGE_BYTES]) -> Result<(), Infallible> {
        match &self.0.borrow().frames[index].bytes {
            Some(page) => *bytes = **page,
            None => bytes.fill(0),
        }
        Ok(())
    }
    fn store(&self, index: usize, bytes: &[u8; PAGE_BYTES]) -> Result<(), Infallible> {
        let frame = &mut self.0.borrow_mut().frames[index];
        assert_eq!(frame.rights, None, "bytes put under an access");
        **frame.bytes.get_or_insert_with(|| Box::new([0; PAGE_BYTES])) = *bytes;
        Ok(())
    }
}
