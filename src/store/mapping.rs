//! Read-only mappings.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::{Advice, MmapOptions, MmapRaw};

/// Reads of at least this many bytes have the kernel read the whole range ahead of the page faults;
/// for smaller ones a random access is assumed.
const READ_AHEAD: usize = 64 * 1024;

/// A file mapped to read.
///
/// The bytes are for system calls (`writev` to /dev/fuse, to a socket): a page that the disk cannot
/// give is an `EFAULT` there, and a SIGBUS for code that looks at it.
pub(super) struct Mapping(MmapRaw);

impl Mapping {
    /// Maps the first `length` bytes of `file`, which must have that many.
    pub(super) fn new(file: &File, length: u64) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        if file.metadata()?.len() < length as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let map = MmapOptions::new().len(length).map_raw_read_only(file)?;
        // Around a cold page the kernel would read 128 KiB: a long tail for random reads.
        let _ = map.advise(Advice::Random);
        Ok(Self(map))
    }

    /// `length` bytes from `offset`, if the mapping has them. The caller holds the pins of the
    /// pieces they belong to.
    pub(super) fn slice(&self, offset: u64, length: usize) -> Option<&[u8]> {
        let offset = usize::try_from(offset).ok()?;
        if offset.checked_add(length)? > self.0.len() {
            return None;
        }
        if length >= READ_AHEAD {
            let _ = self.0.advise_range(Advice::WillNeed, offset, length);
        }
        // SAFETY: the range was just checked to lie in the mapping, which lives as long as the
        // slice. It covers bytes of verified and pinned pieces of a file that only this daemon
        // writes (private inode, cache locked), and those are not written or punched while pinned,
        // so nothing changes the bytes behind the slice.
        Some(unsafe { std::slice::from_raw_parts(self.0.as_ptr().add(offset), length) })
    }
}
