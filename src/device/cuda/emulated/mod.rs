//! The emulated driver: runs the kernels' own source on the CPU (`kernels/emulator/`). Everything is done when the call
//! returns. Device memory is host memory, so an address is a pointer, and every range is checked before it is touched.

mod branches;
mod gemm;
mod gemm_fp8;
mod library;

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;

pub use branches::Order;
use branches::{Accesses, Fork};
use library::Library;

use super::driver::{Address, Driver, Gemm, GemmFp8, Grid, Kernel, LANES, Properties, Recorded, TensorMap, TensorSpec};
use crate::device::DeviceError;
use crate::device::cuda::algorithms::{Algorithm, Kept};

/// The one algorithm of products here.
const ONLY: Algorithm = Algorithm([0; 8]);

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
    order: Order,
    /// Tells its memory from that of other drivers, whose launches may run at the same time.
    number: u64,
    recording: Mutex<Option<Tape>>,
    memory: Mutex<Memory>,
    /// Branches that are not joined yet, the innermost last.
    forks: Mutex<Vec<Fork>>,
    /// Memory that was given back meanwhile.
    given_back: Mutex<Vec<Address>>,
    /// How many forks have run.
    forked: AtomicU32,
    /// Algorithms of products, where they are kept.
    algorithms: Mutex<Option<Kept>>,
    /// What the operation that runs within a fork touches.
    observed: Mutex<Option<Accesses>>,
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
    Fork(Fork),
}

impl Queued {
    fn describe(&self) -> String {
        match self {
            Self::Copy { bytes, .. } => format!("a copy of {bytes} bytes"),
            Self::Launch { kernel, .. } => kernel.name.to_owned(),
            Self::Gemm(gemm) => format!("a matrix product of {} x {} x {}", gemm.rows, gemm.columns, gemm.depth),
            Self::GemmFp8(gemm) => format!("a matrix product in FP8 of {} x {} x {}", gemm.rows, gemm.columns, gemm.depth),
            Self::Fork(_) => "branches".to_owned(),
        }
    }
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
    // SAFETY: the emulator returns zero-terminated texts that live until this thread's next call of it, or longer.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

fn last_error() -> String {
    // SAFETY: takes nothing.
    text(unsafe { (Library::get().last_error)() })
}

/// Every kernel there is: its file's path as the compiler was given it, and its name.
pub fn kernels() -> Vec<(String, String)> {
    // SAFETY: takes nothing.
    let lines = text(unsafe { (Library::get().kernels)() });
    lines.lines().filter_map(|line| line.rsplit_once(' ')).map(|(file, name)| (file.to_owned(), name.to_owned())).collect()
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
        Self {
            properties,
            schedule,
            order: Order::of(schedule),
            number,
            recording: Mutex::default(),
            memory: Mutex::default(),
            forks: Mutex::default(),
            given_back: Mutex::default(),
            forked: AtomicU32::default(),
            algorithms: Mutex::default(),
            observed: Mutex::default(),
        }
    }

    /// The same with `bytes` of memory.
    #[must_use]
    pub fn with_memory(mut self, bytes: u64) -> Self {
        self.properties.memory = bytes;
        self
    }

    /// The same with branches in this order instead of the schedule's.
    #[must_use]
    pub fn with_order(self, order: Order) -> Self {
        Self { order, ..self }
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

    fn forks(&self) -> MutexGuard<'_, Vec<Fork>> {
        self.forks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observed(&self) -> MutexGuard<'_, Option<Accesses>> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what neither a recording nor a branch can hold.
    fn in_order(&self, what: &'static str) -> Result<(), DeviceError> {
        if !self.forks().is_empty() {
            return Err(self.failed(what, "it cannot be part of a branch: it is not queued, or waits for the host"));
        }
        self.outside_recording(what)
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
        self.note(address, len * size_of::<T>(), false);
        self.located(address, len).map(|values| &*values)
    }

    /// The same to write to.
    #[allow(clippy::mut_from_ref)]
    fn values_mut<T: Pod>(&self, address: Address, len: usize) -> Result<&mut [T], DeviceError> {
        self.note(address, len * size_of::<T>(), true);
        self.located(address, len)
    }

    /// Notes an access of the operation that runs, where it is observed.
    fn note(&self, address: Address, bytes: usize, written: bool) {
        if let Some(accesses) = self.observed().as_mut() {
            let ranges = if written { &mut accesses.written } else { &mut accesses.read };
            ranges.push(address..address + bytes as u64);
        }
    }

    /// `len` values in device memory; nobody else uses device memory during a call of the driver.
    #[allow(clippy::mut_from_ref)]
    fn located<T: Pod>(&self, address: Address, len: usize) -> Result<&mut [T], DeviceError> {
        self.check_range("an access", address, len * size_of::<T>())?;
        if !address.is_multiple_of(align_of::<T>() as u64) {
            return Err(self.failed("an access", format!("the address {address:#x} is misaligned")));
        }
        // SAFETY: the range lies in one allocation and is aligned, and `T` is plain bytes. Work runs in order on the
        // calling thread, and outputs overlap inputs only where an operation works in place, which copies its input first.
        Ok(unsafe { std::slice::from_raw_parts_mut(address as *mut T, len) })
    }

    fn queue(&self, work: Queued) -> Result<(), DeviceError> {
        if let Some(fork) = self.forks().last_mut() {
            fork.push(work);
            return Ok(());
        }
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
            Queued::Fork(fork) => self.run_fork(fork),
        }
    }

    /// Runs branches in one of the orders they may run in, and fails where another one might give something else.
    fn run_fork(&self, fork: &Fork) -> Result<(), DeviceError> {
        let leaves = branches::ordered(fork, self.order, self.forked.fetch_add(1, Ordering::Relaxed));
        let mut touched: Vec<Accesses> = Vec::with_capacity(leaves.len());
        for leaf in &leaves {
            *self.observed() = Some(Accesses::default());
            let done = self.run(leaf.work);
            touched.push(self.observed().take().unwrap_or_default().sorted());
            done?;
        }
        for (i, leaf) in leaves.iter().enumerate() {
            for (j, other) in leaves.iter().enumerate().skip(i + 1).filter(|(_, other)| leaf.beside(other)) {
                let Some(address) = touched[i].clash(&touched[j]) else { continue };
                // SAFETY: any address may be asked about.
                let place = text(unsafe { (Library::get().describe)(address as *const c_void) });
                let [one, two] = [leaf, other].map(|leaf| leaf.work.describe());
                let cause = format!("{one} and {two} may run side by side, and one writes what the other touches: {place}");
                return Err(self.failed("a branch", cause));
            }
        }
        Ok(())
    }

    fn run_copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        self.check_range("a copy's source", from, bytes)?;
        self.check_range("a copy's destination", to, bytes)?;
        self.note(from, bytes, false);
        self.note(to, bytes, true);
        // SAFETY: both ranges lie in allocations; `copy` allows them to overlap.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    /// Notes what the last launch of this thread touched: nothing where the kernels were built without asking for it.
    fn note_launch(&self) {
        let mut count = 0;
        // SAFETY: the emulator says how many ranges there are; they live until this thread's next launch.
        let ranges = unsafe {
            let first = (Library::get().accesses)(&mut count);
            if count == 0 { &[] } else { std::slice::from_raw_parts(first, count) }
        };
        ranges.iter().for_each(|range| self.note(range.first, (range.end - range.first) as usize, range.written != 0));
    }

    fn run_launch(&self, kernel: Kernel, grid: &Grid, parameters: &[Vec<u8>]) -> Result<(), DeviceError> {
        let name = CString::new(kernel.name).map_err(|_| self.failed(kernel.name, "its name holds a zero byte"))?;
        // Kernels read their arguments in place: as aligned as the strictest of them, a tensor map, wants.
        let aligned: Vec<Vec<TensorMap>> = parameters.iter().map(|bytes| align(bytes)).collect();
        let pointers: Vec<*const c_void> = aligned.iter().map(|p| p.as_ptr().cast()).collect();
        let sizes: Vec<usize> = parameters.iter().map(Vec::len).collect();
        let Schedule { seed, late } = self.schedule;
        let observed = self.observed().is_some();
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
                observed.into(),
            )
        };
        match status {
            0 => {
                if observed {
                    self.note_launch();
                }
                Ok(())
            }
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
        if !self.forks().is_empty() {
            self.given_back.lock().unwrap_or_else(PoisonError::into_inner).push(address);
            return;
        }
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
        self.in_order("an upload")?;
        self.values_mut(to, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.in_order("a download")?;
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
        if let Some(kept) = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
            && kept.get(gemm).is_none()
        {
            kept.keep(gemm, ONLY).map_err(|error| self.failed("a matrix product", error.to_string()))?;
        }
        self.queue(Queued::Gemm(*gemm))
    }

    /// There is one algorithm here, but the file is the same.
    fn keep_algorithms(&self, file: &Path) -> crate::Result<Option<String>> {
        let (kept, warning) = Kept::open(file, &self.properties.name, 0)?;
        *self.algorithms.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        Ok(warning)
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

    fn begin_branch(&self) -> Result<usize, DeviceError> {
        let mut forks = self.forks();
        if forks.len() + 1 == LANES {
            return Err(self.failed("a branch", format!("{} lie within one another already", forks.len())));
        }
        forks.push(Fork::default());
        Ok(forks.len())
    }

    fn end_branch(&self) -> Result<(), DeviceError> {
        match self.forks().last_mut() {
            Some(fork) if !fork.ended => fork.ended = true,
            _ => return Err(self.failed("the end of a branch", "none was begun")),
        }
        Ok(())
    }

    fn join_branch(&self) -> Result<(), DeviceError> {
        let fork = match self.forks().pop() {
            Some(fork) if fork.ended => fork,
            _ => return Err(self.failed("the join of a branch", "none was ended")),
        };
        let done = self.queue(Queued::Fork(fork));
        if self.forks().is_empty() {
            let given_back = std::mem::take(&mut *self.given_back.lock().unwrap_or_else(PoisonError::into_inner));
            given_back.into_iter().for_each(|address| self.free(address));
        }
        done
    }

    fn begin_recording(&self) -> Result<(), DeviceError> {
        self.in_order("a recording")?;
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
        self.in_order("a replay")?;
        let Some(tape) = recorded.as_any().downcast_ref::<Tape>() else {
            return Err(self.failed("a replay", "the recording was made by another driver"));
        };
        tape.queued.iter().try_for_each(|work| self.run(work))
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.in_order("a wait")
    }
}
