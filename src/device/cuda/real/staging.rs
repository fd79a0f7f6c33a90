//! Pinned host memory for uploads: the caller's values are copied into it and from there to the device while the host
//! goes on. A block is used again when the copy out of it is done.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};

use crate::device::cuda::driver::Address;

/// Bytes of one block; longer uploads take several.
const BLOCK: usize = 16 << 20;
/// Most blocks: when all are busy, the oldest is waited for.
const BLOCKS: usize = 8;
/// Blocks are no smaller than this, so that small uploads share them over time.
const SMALLEST: usize = 64 << 10;

/// The blocks.
#[derive(Debug, Default)]
pub struct Staging {
    blocks: Vec<Block>,
    next: usize,
}

#[derive(Debug)]
struct Block {
    host: *mut u8,
    size: usize,
    copied: CudaEvent,
}

// SAFETY: the pointer is pinned memory that only this block names.
unsafe impl Send for Block {}

impl Staging {
    /// Queues an upload; the context must be current.
    pub fn write(&mut self, context: &Arc<CudaContext>, stream: &CudaStream, to: Address, bytes: &[u8]) -> Result<(), DriverError> {
        let mut to = to;
        for part in bytes.chunks(BLOCK) {
            let block = self.idle(context, part.len())?;
            // SAFETY: the block has room for the part, and no copy out of it is in progress.
            let staged = unsafe {
                std::ptr::copy_nonoverlapping(part.as_ptr(), block.host, part.len());
                std::slice::from_raw_parts(block.host, part.len())
            };
            // SAFETY: the target lies in an allocation; the block stays as it is until its event has passed.
            unsafe { result::memcpy_htod_async(to, staged, stream.cu_stream()) }?;
            block.copied.record(stream)?;
            to += part.len() as u64;
        }
        Ok(())
    }

    /// A block of at least `size` bytes that no copy uses.
    fn idle(&mut self, context: &Arc<CudaContext>, size: usize) -> Result<&mut Block, DriverError> {
        let free = self.blocks.iter().position(|block| block.size >= size && block.copied.is_complete());
        let index = match free {
            Some(index) => index,
            None if self.blocks.len() < BLOCKS => {
                self.blocks.push(Block::new(context, size)?);
                self.blocks.len() - 1
            }
            None => {
                let oldest = self.next % BLOCKS;
                self.next += 1;
                self.blocks[oldest].copied.synchronize()?;
                if self.blocks[oldest].size < size {
                    let larger = Block::new(context, size)?;
                    std::mem::replace(&mut self.blocks[oldest], larger).release();
                }
                oldest
            }
        };
        Ok(&mut self.blocks[index])
    }

    /// Gives the memory back; nothing queued may use it.
    pub fn release(&mut self) {
        self.blocks.drain(..).for_each(Block::release);
    }
}

impl Block {
    fn new(context: &Arc<CudaContext>, size: usize) -> Result<Self, DriverError> {
        let size = size.next_power_of_two().max(SMALLEST);
        let copied = context.new_event(None)?;
        // SAFETY: the context is current; the memory is given back in `release`.
        let host = unsafe { result::malloc_host(size, 0) }?.cast();
        Ok(Self { host, size, copied })
    }

    fn release(self) {
        // SAFETY: made by `malloc_host`, given back once, with no copy in progress.
        let _ = unsafe { result::free_host(self.host.cast()) };
    }
}
