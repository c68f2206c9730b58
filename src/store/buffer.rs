//! Buffers for incoming pieces, used again and again.
//!
//! At full speed a buffer lives a few milliseconds. Freshly allocated ones would cost a page fault
//! every 4 KiB, so what is dropped goes to a bounded free list that all torrents of a store share.
//!
//! Of a long piece often only some blocks are fetched ([BEP 52]). Its buffer is a mapping of its own, of
//! which only what is written takes memory.
//!
//! [BEP 52]: https://www.bittorrent.org/beps/bep_0052.html

use std::sync::{Arc, Mutex};

use memmap2::MmapMut;

use super::lock;
use crate::proto::geometry::{Block, Geometry, PieceIndex, SPARSE_PIECE};

/// The most bytes kept for reuse: what one torrent may have in flight.
const FREE_BYTES: usize = 32 << 20;

/// The most buffers kept for reuse: small pieces must not make a long list to search.
const FREE_BUFFERS: usize = 256;

/// The free list.
#[derive(Default)]
pub(super) struct BufferPool {
    free: Mutex<Vec<Box<[u8]>>>,
}

impl BufferPool {
    /// `length` bytes of arbitrary content.
    pub(super) fn take(self: &Arc<Self>, length: usize) -> PooledBytes {
        let mut free = lock(&self.free);
        // Not one much too large: that would hold memory that nobody counts.
        let found = free.iter().rposition(|b| b.len() >= length && b.len() / 2 <= length);
        let found = found.map(|i| free.remove(i));
        drop(free);
        let bytes = found.unwrap_or_else(|| vec![0; length].into());
        PooledBytes { bytes: Bytes::Allocated(bytes), length, pool: self.clone() }
    }

    /// `length` zeros, which take memory only when something else is written there.
    fn take_sparse(self: &Arc<Self>, length: usize) -> PooledBytes {
        match MmapMut::map_anon(length) {
            Ok(bytes) => PooledBytes { bytes: Bytes::Mapped(bytes), length, pool: self.clone() },
            Err(_) => self.take(length),
        }
    }

    fn give_back(&self, bytes: Box<[u8]>) {
        if bytes.len() > FREE_BYTES {
            return;
        }
        let mut free = lock(&self.free);
        let mut held: usize = free.iter().map(|b| b.len()).sum();
        // The length just used is the one in demand; the oldest may be of another torrent.
        while held + bytes.len() > FREE_BYTES || free.len() >= FREE_BUFFERS {
            held -= free.remove(0).len();
        }
        free.push(bytes);
    }
}

/// Bytes that go back to their pool when dropped.
pub(super) struct PooledBytes {
    bytes: Bytes,
    length: usize,
    pool: Arc<BufferPool>,
}

enum Bytes {
    Allocated(Box<[u8]>),
    Mapped(MmapMut),
}

impl PooledBytes {
    pub(super) fn bytes(&self) -> &[u8] {
        let bytes: &[u8] = match &self.bytes {
            Bytes::Allocated(bytes) => bytes,
            Bytes::Mapped(bytes) => bytes,
        };
        &bytes[..self.length]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let bytes: &mut [u8] = match &mut self.bytes {
            Bytes::Allocated(bytes) => bytes,
            Bytes::Mapped(bytes) => bytes,
        };
        &mut bytes[..self.length]
    }
}

impl Drop for PooledBytes {
    fn drop(&mut self) {
        if let Bytes::Allocated(bytes) = &mut self.bytes {
            self.pool.give_back(std::mem::take(bytes));
        }
    }
}

/// A piece on its way in: any thread puts blocks, until the buffer is closed to be verified.
/// Nothing can be read from it.
pub struct PieceBuffer {
    piece: PieceIndex,
    geometry: Geometry,
    filling: Mutex<Option<Filling>>,
}

struct Filling {
    data: PooledBytes,
    arrived: Box<[bool]>,
}

impl PieceBuffer {
    /// `by_blocks`: blocks of the torrent can be verified alone, so that perhaps only some will come.
    pub(super) fn new(
        piece: PieceIndex,
        geometry: Geometry,
        by_blocks: bool,
        pool: &Arc<BufferPool>,
    ) -> Self {
        let length = geometry.piece_len(piece);
        let data = match by_blocks && length >= SPARSE_PIECE {
            true => pool.take_sparse(length as usize),
            false => pool.take(length as usize),
        };
        let arrived = vec![false; geometry.block_count(piece) as usize].into();
        Self { piece, geometry, filling: Mutex::new(Some(Filling { data, arrived })) }
    }

    /// The piece it is for.
    pub fn piece(&self) -> PieceIndex {
        self.piece
    }

    /// Puts a block where it belongs; the first copy wins. `false`, with nothing changed: the block
    /// is already there, the buffer is closed, or block and length do not belong to this piece.
    pub fn put(&self, block: Block, data: &[u8]) -> bool {
        let ours = self.geometry.block(self.piece, block.index) == Some(block);
        if !ours || data.len() != block.length as usize {
            return false;
        }
        let mut filling = lock(&self.filling);
        let Some(Filling { data: into, arrived }) = filling.as_mut() else { return false };
        let begin = block.begin() as usize;
        let into = into.bytes_mut().get_mut(begin..begin + data.len());
        match (arrived.get_mut(block.index as usize), into) {
            (Some(arrived @ false), Some(into)) => {
                into.copy_from_slice(data);
                *arrived = true;
                true
            }
            _ => false,
        }
    }

    /// A copy of a block that is here.
    pub(super) fn copy_block(&self, index: u32, pool: &Arc<BufferPool>) -> Option<PooledBytes> {
        let block = self.geometry.block(self.piece, index)?;
        let filling = lock(&self.filling);
        let filling = filling.as_ref().filter(|f| f.arrived.get(index as usize) == Some(&true))?;
        let begin = block.begin() as usize;
        let bytes = filling.data.bytes().get(begin..begin + block.length as usize)?;
        let mut copy = pool.take(bytes.len());
        copy.bytes_mut().copy_from_slice(bytes);
        Some(copy)
    }

    /// A block that is here is wrong: another copy may take its place.
    pub fn refuse(&self, index: u32) {
        if let Some(filling) = lock(&self.filling).as_mut()
            && let Some(arrived) = filling.arrived.get_mut(index as usize)
        {
            *arrived = false;
        }
    }

    /// Closes the buffer and drops its bytes: the piece was given up, and late blocks are refused.
    pub fn discard(&self) {
        drop(lock(&self.filling).take());
    }

    /// Closes the buffer and takes its bytes; `None` when it was closed before or blocks are
    /// missing (what lies in their place is older data) that `fill` does not have either.
    pub(super) fn close(
        &self,
        mut fill: impl FnMut(Block, &mut [u8]) -> bool,
    ) -> Option<PooledBytes> {
        let Filling { mut data, arrived } = lock(&self.filling).take()?;
        for block in self.geometry.blocks(self.piece) {
            let begin = block.begin() as usize;
            let here = arrived.get(block.index as usize) == Some(&true);
            let into = data.bytes_mut().get_mut(begin..begin + block.length as usize)?;
            if !here && !fill(block, into) {
                return None;
            }
        }
        Some(data)
    }

    /// Opens the buffer again with all bytes of its piece, some of which are wrong.
    pub(super) fn reopen(&self, data: PooledBytes) {
        let arrived = vec![true; self.geometry.block_count(self.piece) as usize].into();
        *lock(&self.filling) = Some(Filling { data, arrived });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry::new(100_000, 40_000).unwrap()
    }

    #[test]
    fn the_first_copy_of_a_block_wins() {
        let (g, pool) = (geometry(), Arc::default());
        let piece = g.piece(1).unwrap();
        let buffer = PieceBuffer::new(piece, g.clone(), false, &pool);
        for block in g.blocks(piece) {
            assert!(buffer.put(block, &vec![1; block.length as usize]));
            assert!(!buffer.put(block, &vec![2; block.length as usize]));
        }
        let data = buffer.close(|_, _| false).unwrap();
        assert_eq!(data.bytes(), vec![1; 40_000]);
    }

    #[test]
    fn what_does_not_belong_is_refused() {
        let (g, pool) = (geometry(), Arc::default());
        let buffer = PieceBuffer::new(g.piece(1).unwrap(), g.clone(), false, &pool);
        let block = g.block(buffer.piece(), 0).unwrap();
        assert!(!buffer.put(g.block(g.piece(0).unwrap(), 0).unwrap(), &[0; 16_384]));
        assert!(!buffer.put(block, &[0; 16_383]));
        assert!(!buffer.put(Block { index: 3, ..block }, &[0; 16_384]));
        assert!(!buffer.put(Block { length: 5, ..block }, &[0; 5]));
        assert!(buffer.put(block, &[0; 16_384]));
    }

    #[test]
    fn a_closed_buffer_takes_no_late_block() {
        let (g, pool) = (geometry(), Arc::default());
        let buffer = PieceBuffer::new(g.piece(2).unwrap(), g.clone(), false, &pool);
        let mut blocks = g.blocks(buffer.piece());
        let first = blocks.next().unwrap();
        assert!(buffer.put(first, &vec![1; first.length as usize]));
        assert!(buffer.close(|_, _| false).is_none(), "a block was missing");
        let late = blocks.next().unwrap();
        assert!(!buffer.put(late, &vec![1; late.length as usize]));
    }

    #[test]
    fn buffers_are_used_again_and_the_free_list_is_bounded() {
        let pool = Arc::<BufferPool>::default();
        let first = pool.take(1 << 20);
        let at = first.bytes().as_ptr();
        drop(first);
        assert_eq!(pool.take((1 << 20) - 5).bytes().as_ptr(), at);
        let many: Vec<_> = (0..100).map(|_| pool.take(1 << 20)).collect();
        drop(many);
        let held: usize = lock(&pool.free).iter().map(|b| b.len()).sum();
        assert_eq!(held, FREE_BYTES);
    }
}
