//! A caching arena: device memory that was given back is kept and handed out again for the same size, so that plans for
//! a shape cost no driver calls after their first time. All work is in order but for branches, and what those give back comes
//! here when they are joined: so memory may change hands while earlier work on it is still queued.

use std::collections::HashMap;

use cudarc::driver::{CudaStream, DriverError, result, sys};

use crate::device::DeviceError;
use crate::device::cuda::driver::Address;

/// Sizes are rounded up to this, or to `LARGE` from there on: few different sizes, so that blocks find new users.
const SMALL: usize = 512;
const LARGE: usize = 2 << 20;

/// Device memory in use and kept.
#[derive(Debug, Default)]
pub struct Arena {
    /// Size of every block in use.
    used: HashMap<Address, usize>,
    /// Blocks that wait for a new user, by size.
    kept: HashMap<usize, Vec<Address>>,
    /// Bytes in use, now and at most.
    in_use: usize,
    peak: usize,
}

fn rounded(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(if bytes < LARGE { SMALL } else { LARGE })
}

impl Arena {
    /// A zeroed block; the context must be current.
    ///
    /// # Errors
    /// When the device's memory is exhausted even without the kept blocks.
    pub fn allocate(&mut self, stream: &CudaStream, bytes: usize, device: &str) -> Result<Address, DeviceError> {
        let size = rounded(bytes);
        let address = match self.kept.get_mut(&size).and_then(Vec::pop) {
            Some(address) => address,
            None => self.fresh(stream, size).map_err(|error| self.failed(device, bytes, error))?,
        };
        self.used.insert(address, size);
        self.in_use += size;
        self.peak = self.peak.max(self.in_use);
        // SAFETY: the block has `size` bytes and nobody else uses it.
        let zeroed = unsafe { result::memset_d8_async(address, 0, size, stream.cu_stream()) };
        zeroed.map_err(|error| self.failed(device, bytes, error))?;
        Ok(address)
    }

    fn fresh(&mut self, stream: &CudaStream, size: usize) -> Result<Address, DriverError> {
        // SAFETY: memory of the current context, given back in `release` or when it runs short.
        match unsafe { result::malloc_sync(size) } {
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) if self.kept.values().any(|blocks| !blocks.is_empty()) => {
                // Queued work may still use a kept block: wait before giving it back.
                stream.context().synchronize()?;
                self.trim();
                // SAFETY: as above.
                unsafe { result::malloc_sync(size) }
            }
            result => result,
        }
    }

    fn failed(&self, device: &str, bytes: usize, error: DriverError) -> DeviceError {
        if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return DeviceError::OutOfMemory { device: device.to_owned(), requested: bytes as u64 };
        }
        let what = format!("an allocation of {bytes} bytes");
        DeviceError::Failed { device: device.to_owned(), what, cause: super::describe(error) }
    }

    /// Bytes that were in use at most, as rounded up.
    pub fn peak(&self) -> u64 {
        self.peak as u64
    }

    /// Keeps a block for its next user.
    pub fn free(&mut self, address: Address) {
        if let Some(size) = self.used.remove(&address) {
            self.in_use -= size;
            self.kept.entry(size).or_default().push(address);
        }
    }

    /// Gives the kept blocks back to the driver; nothing queued may use them.
    fn trim(&mut self) {
        for address in self.kept.drain().flat_map(|(_, blocks)| blocks) {
            // SAFETY: allocated by `fresh`, and no longer in any list.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    /// Gives everything back, at the end; the context must be current and idle.
    pub fn release(&mut self) {
        self.trim();
        for (address, _) in self.used.drain() {
            // SAFETY: allocated by `fresh`; the driver is going away, and every buffer holds it alive.
            let _ = unsafe { result::free_sync(address) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up() {
        assert_eq!([0, 1, 512, 513].map(rounded), [512, 512, 512, 1024]);
        assert_eq!([LARGE - 1, LARGE, LARGE + 1].map(rounded), [LARGE, LARGE, 2 * LARGE]);
    }
}
