//! The emulated driver: runs the kernels' own source on the CPU (`kernels/emulator/`). Everything is done when the call
//! returns. Device memory is host memory, so an address is a pointer, and every range is checked before it is touched.

mod gemm;
mod gemm_fp8;
mod library;

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;

use library::Library;

use super::driver::{Address, Driver, Gemm, GemmFp8, Grid, Kernel, Properties, Recorded, TensorMap, TensorSpec};
use crate::device::DeviceError;

/// The order in which the emulator runs what the hardware may run in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// 0 runs the threads of a block in turn; anything else runs one random warp as far as it gets.
    pub seed: u32,
    /// Whether copies and matrix products finish as late as the program allows.
    pub late: bool,
}

impl Schedule {
    /// One of each kind: some races show in only one of them.
    pub const ALL: [Self; 4] =
        [Self { seed: 0, late: false }, Self { seed: 0, late: true }, Self { seed: 5, late: false }, Self { seed: 6, late: true }];
}

/// The emulated driver.
#[derive(Debug)]
pub struct Emulated {
    properties: Properties,
    schedule: Schedule,
    /// Tells its memory from that of other drivers, whose launches may run at the same time.
    number: u64,
    recording: Mutex<Option<Tape>>,
    memory: Mutex<Memory>,
}

/// Device memory in use.
#[derive(Debug, Default)]
struct Memory {
    sizes: HashMap<Address, usize>,
    in_use: usize,
    peak: usize,
}

#[derive(Debug, Clone)]
enum Queued {
    Copy { from: Address, to: Address, bytes: usize },
    Launch { kernel: Kernel, grid: Grid, parameters: Vec<Vec<u8>> },
    Gemm(Gemm),
    GemmFp8(GemmFp8),
}

/// What was queued while recording, and the first thing that cannot be recorded.
#[derive(Debug, Default)]
struct Tape {
    queued: Vec<Queued>,
    broken_by: Option<&'static str>,
}

impl Recorded for Tape {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// A text of the emulator.
fn text(pointer: *const c_char) -> String {
    // SAFETY: the emulator returns zero-terminated texts that live until this thread's next call of it.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

fn last_error() -> String {
    // SAFETY: takes nothing.
    text(unsafe { (Library::get().last_error)() })
}

impl Emulated {
    /// An emulated Hopper.
    pub fn new(schedule: Schedule) -> Self {
        Self::of(schedule, (9, 0))
    }

    /// An emulated Ampere, which runs the portable kernels only.
    pub fn ampere(schedule: Schedule) -> Self {
        Self::of(schedule, (8, 0))
    }

    fn of(schedule: Schedule, capability: (u32, u32)) -> Self {
        static DRIVERS: AtomicU64 = AtomicU64::new(0);
        let number = DRIVERS.fetch_add(1, Ordering::Relaxed);
        let properties = Properties { name: "emulator".to_owned(), capability, multiprocessors: 4, memory: 1 << 34 };
        Self { properties, schedule, number, recording: Mutex::default(), memory: Mutex::default() }
    }

    /// The same with `bytes` of memory.
    #[must_use]
    pub fn with_memory(mut self, bytes: u64) -> Self {
        self.properties.memory = bytes;
        self
    }

    /// Bytes of all allocations.
    pub fn memory_in_use(&self) -> u64 {
        self.memory().in_use as u64
    }

    fn failed(&self, what: &str, cause: impl Into<String>) -> DeviceError {
        DeviceError::Failed { device: self.properties.name.clone(), what: what.to_owned(), cause: cause.into() }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tape(&self) -> MutexGuard<'_, Option<Tape>> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what a recording cannot hold, and spoils the recording.
    fn outside_recording(&self, what: &'static str) -> Result<(), DeviceError> {
        match self.tape().as_mut() {
            None => Ok(()),
            Some(tape) => {
                tape.broken_by.get_or_insert(what);
                Err(self.failed(what, "it cannot be part of a recorded step: it allocates or waits for the host"))
            }
        }
    }

    /// Fails unless the range lies in one allocation.
    fn check_range(&self, what: &str, address: Address, bytes: usize) -> Result<(), DeviceError> {
        let pointer = address as *const c_void;
        // SAFETY: any address may be asked about.
        if bytes == 0 || unsafe { (Library::get().accessible)(pointer, bytes) } != 0 {
            return Ok(());
        }
        // SAFETY: as above.
        let place = text(unsafe { (Library::get().describe)(pointer) });
        Err(self.failed(what, format!("{bytes} bytes of device memory are not there: they begin {place}")))
    }

    /// `len` values in device memory.
    fn values<T: Pod>(&self, address: Address, len: usize) -> Result<&[T], DeviceError> {
        self.values_mut(address, len).map(|values| &*values)
    }

    /// `len` values in device memory; nobody else uses device memory during a call of the driver.
    #[allow(clippy::mut_from_ref)]
    fn values_mut<T: Pod>(&self, address: Address, len: usize) -> Result<&mut [T], DeviceError> {
        self.check_range("an access", address, len * size_of::<T>())?;
        if !address.is_multiple_of(align_of::<T>() as u64) {
            return Err(self.failed("an access", format!("the address {address:#x} is misaligned")));
        }
        // SAFETY: the range lies in one allocation and is aligned, and `T` is plain bytes. Work runs in order on the
        // calling thread, and outputs overlap inputs only where an operation works in place, which copies its input first.
        Ok(unsafe { std::slice::from_raw_parts_mut(address as *mut T, len) })
    }

    fn queue(&self, work: Queued) -> Result<(), DeviceError> {
        if let Some(tape) = self.tape().as_mut() {
            tape.queued.push(work);
            return Ok(());
        }
        self.run(&work)
    }

    fn run(&self, work: &Queued) -> Result<(), DeviceError> {
        match work {
            Queued::Copy { from, to, bytes } => self.run_copy(*from, *to, *bytes),
            Queued::Launch { kernel, grid, parameters } => self.run_launch(*kernel, grid, parameters),
            Queued::Gemm(gemm) => gemm::run(self, gemm),
            Queued::GemmFp8(gemm) => gemm_fp8::run(self, gemm),
        }
    }

    fn run_copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        self.check_range("a copy's source", from, bytes)?;
        self.check_range("a copy's destination", to, bytes)?;
        // SAFETY: both ranges lie in allocations; `copy` allows them to overlap.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    fn run_launch(&self, kernel: Kernel, grid: &Grid, parameters: &[Vec<u8>]) -> Result<(), DeviceError> {
        let name = CString::new(kernel.name).map_err(|_| self.failed(kernel.name, "its name holds a zero byte"))?;
        // Kernels read their arguments in place: as aligned as the strictest of them, a tensor map, wants.
        let aligned: Vec<Vec<TensorMap>> = parameters.iter().map(|bytes| align(bytes)).collect();
        let pointers: Vec<*const c_void> = aligned.iter().map(|p| p.as_ptr().cast()).collect();
        let sizes: Vec<usize> = parameters.iter().map(Vec::len).collect();
        let Schedule { seed, late } = self.schedule;
        // SAFETY: `grid.blocks` has three entries, `pointers` and `sizes` as many as `count` says. The emulator checks count and
        // sizes against the kernel, and turns the kernel's own mistakes into errors.
        let status = unsafe {
            (Library::get().launch)(
                name.as_ptr(),
                grid.blocks.as_ptr(),
                grid.threads,
                grid.shared as usize,
                pointers.as_ptr(),
                sizes.as_ptr(),
                sizes.len(),
                seed,
                late.into(),
                self.number,
            )
        };
        match status {
            0 => Ok(()),
            1 => Err(self.failed(kernel.name, format!("kernels/{}.cu has no kernel of this name", kernel.file))),
            _ => Err(self.failed(kernel.name, last_error())),
        }
    }
}

/// The bytes, copied to where the widest type of a kernel's parameters may lie.
fn align(bytes: &[u8]) -> Vec<TensorMap> {
    let mut aligned = vec![TensorMap([0; 16]); bytes.len().div_ceil(size_of::<TensorMap>())];
    bytemuck::cast_slice_mut::<_, u8>(&mut aligned)[..bytes.len()].copy_from_slice(bytes);
    aligned
}

impl Driver for Emulated {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        self.outside_recording("an allocation")?;
        let exhausted = || DeviceError::OutOfMemory { device: self.properties.name.clone(), requested: bytes as u64 };
        if self.memory_in_use() + bytes as u64 > self.properties.memory {
            return Err(exhausted());
        }
        // SAFETY: any size may be asked for; null is checked.
        let address = unsafe { (Library::get().allocate)(bytes, self.number) } as Address;
        if address == 0 {
            return Err(exhausted());
        }
        let mut memory = self.memory();
        memory.sizes.insert(address, bytes);
        memory.in_use += bytes;
        memory.peak = memory.peak.max(memory.in_use);
        Ok(address)
    }

    fn free(&self, address: Address) {
        let mut memory = self.memory();
        memory.in_use -= memory.sizes.remove(&address).unwrap_or(0);
        drop(memory);
        // A recording may still name the memory.
        let _ = self.outside_recording("a release of memory");
        // SAFETY: buffers give back each address of `allocate` once; the emulator ignores addresses that it does not know.
        unsafe { (Library::get().free)(address as *mut c_void) };
    }

    fn peak_memory(&self) -> u64 {
        self.memory().peak as u64
    }

    fn write(&self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.outside_recording("an upload")?;
        self.values_mut(to, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.outside_recording("a download")?;
        bytes.copy_from_slice(self.values(from, bytes.len())?);
        Ok(())
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        self.queue(Queued::Copy { from, to, bytes })
    }

    fn launch(&self, kernel: Kernel, grid: Grid, parameters: &[&[u8]]) -> Result<(), DeviceError> {
        self.queue(Queued::Launch { kernel, grid, parameters: parameters.iter().map(|p| p.to_vec()).collect() })
    }

    fn gemm(&self, gemm: &Gemm) -> Result<(), DeviceError> {
        self.queue(Queued::Gemm(*gemm))
    }

    fn prepare_gemm_fp8(&self, _: usize, columns: usize, depth: usize) -> Result<(), DeviceError> {
        gemm_fp8::prepare(self, columns, depth)
    }

    fn gemm_fp8(&self, gemm: &GemmFp8) -> Result<(), DeviceError> {
        self.queue(Queued::GemmFp8(*gemm))
    }

    fn tensor_map(&self, spec: &TensorSpec) -> Result<TensorMap, DeviceError> {
        let TensorSpec { address, element, dims, strides, tile, swizzle } = spec;
        if strides.len() + 1 != dims.len() || tile.len() != dims.len() {
            return Err(self.failed("tensor map", format!("its arrays do not fit its rank: {spec:?}")));
        }
        let mut map = TensorMap([0; 16]);
        // SAFETY: the arrays have as many entries as the rank says (strides: one fewer), as checked above.
        let status = unsafe {
            (Library::get().tensor_map)(
                &mut map,
                element.bytes() as c_int,
                dims.len() as c_int,
                *address as *mut c_void,
                dims.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                *swizzle,
            )
        };
        if status == 0 { Ok(map) } else { Err(self.failed("tensor map", format!("{}: {spec:?}", last_error()))) }
    }

    fn begin_recording(&self) -> Result<(), DeviceError> {
        self.outside_recording("a recording")?;
        *self.tape() = Some(Tape::default());
        Ok(())
    }

    fn end_recording(&self) -> Result<Box<dyn Recorded>, DeviceError> {
        let Some(tape) = self.tape().take() else {
            return Err(self.failed("a recording", "none was begun"));
        };
        if let Some(what) = tape.broken_by {
            return Err(self.failed("a recording", format!("{what} cannot be part of it")));
        }
        Ok(Box::new(tape))
    }

    fn replay(&self, recorded: &dyn Recorded) -> Result<(), DeviceError> {
        self.outside_recording("a replay")?;
        let Some(tape) = recorded.as_any().downcast_ref::<Tape>() else {
            return Err(self.failed("a replay", "the recording was made by another driver"));
        };
        tape.queued.iter().try_for_each(|work| self.run(work))
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.outside_recording("a wait")
    }
}
