//! The real driver: one GPU, one stream and more of them for branches, over cudarc. Kernels come from the fatbins that
//! `build.rs` embedded.

mod arena;
mod blas;
mod branches;
mod kernels;
mod staging;
mod tuning;

use std::path::Path;
use std::sync::{Arc, Mutex};

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::driver::{Address, Driver, Element, Gemm, GemmFp8, Grid, Kernel, LANES, Properties, Recorded, TensorMap, TensorSpec};
use crate::device::DeviceError;
use crate::device::cuda::algorithms::Kept;
use arena::Arena;
use blas::Blas;
use branches::Branches;
use kernels::Kernels;
use staging::Staging;
use tuning::Tuning;

/// Oldest compute capability that the kernels are built for.
const OLDEST: (u32, u32) = (8, 0);
/// Oldest driver that loads what CUDA 13 built.
const OLDEST_DRIVER: i32 = 13_000;

/// A GPU.
pub struct Real {
    properties: Properties,
    recording: Mutex<bool>,
    staging: Mutex<Staging>,
    blas: Mutex<Blas>,
    /// Measured algorithms, where they are asked for.
    algorithms: Mutex<Option<Kept>>,
    kernels: Kernels,
    arena: Mutex<Arena>,
    branches: Branches,
    context: Arc<CudaContext>,
}

impl std::fmt::Debug for Real {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Real").field("properties", &self.properties).finish_non_exhaustive()
    }
}

fn unavailable(cause: impl Into<String>) -> DeviceError {
    DeviceError::Unavailable { device: "cuda".into(), cause: cause.into() }
}

/// GPUs of this machine.
///
/// # Errors
/// When there is no driver, or it does not start.
pub fn count() -> Result<usize, DeviceError> {
    // SAFETY: only tries to open libcuda. It comes first, since every other call panics without that library.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable("the NVIDIA driver is not installed (libcuda was not found); install it, or use --device cpu"));
    }
    match CudaContext::device_count() {
        Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        Err(error) => Err(unavailable(format!("the NVIDIA driver does not start: {}; use --device cpu", describe(error)))),
    }
}

/// What a GPU can do, without using it for anything.
///
/// # Errors
/// When there is no such device, or it cannot be asked.
pub fn properties(ordinal: usize) -> Result<Properties, DeviceError> {
    let count = count()?;
    if ordinal >= count {
        let there = if count == 0 { "this machine has none".to_owned() } else { format!("this machine has {count}") };
        return Err(unavailable(format!("there is no GPU number {ordinal}: {there}; use --device cpu")));
    }
    let ask = || -> Result<Properties, DriverError> {
        use sys::CUdevice_attribute as Attribute;
        let device = result::device::get(ordinal as i32)?;
        // SAFETY: the device was just found.
        let attribute = |what: Attribute| unsafe { result::device::get_attribute(device, what) }.map(|v| v.max(0) as u32);
        Ok(Properties {
            name: result::device::get_name(device)?,
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            // SAFETY: as above.
            memory: unsafe { result::device::total_mem(device) }? as u64,
        })
    };
    ask().map_err(|error| unavailable(format!("GPU number {ordinal} does not answer: {}", describe(error))))
}

/// Version of the driver, such as 13000 for CUDA 13.0.
pub fn driver_version() -> Result<i32, DeviceError> {
    count()?;
    let mut version = 0;
    // SAFETY: the library is there, and the pointer is valid for the call.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    status.result().map_err(|error| unavailable(format!("the driver does not tell its version: {}", describe(error))))?;
    Ok(version)
}

/// Name and meaning of a driver's error code.
fn describe(error: DriverError) -> String {
    let text = |s: Result<&std::ffi::CStr, DriverError>| s.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{} ({})", text(error.error_string()), text(error.error_name()))
}

/// What to do about an error of a queued operation.
fn advice(error: DriverError) -> &'static str {
    use sys::CUresult::*;
    match error.0 {
        CUDA_ERROR_ILLEGAL_ADDRESS | CUDA_ERROR_MISALIGNED_ADDRESS | CUDA_ERROR_LAUNCH_FAILED | CUDA_ERROR_ILLEGAL_INSTRUCTION => {
            "; this is a mistake in a kernel: run again under compute-sanitizer and report what it says"
        }
        CUDA_ERROR_NO_BINARY_FOR_GPU | CUDA_ERROR_UNSUPPORTED_PTX_VERSION => "; update the NVIDIA driver to 580 or newer",
        CUDA_ERROR_ECC_UNCORRECTABLE | CUDA_ERROR_HARDWARE_STACK_ERROR => "; the GPU is damaged: use another one",
        _ => "",
    }
}

impl Real {
    /// Opens a GPU.
    ///
    /// # Errors
    /// Says what is missing: driver, device, a device that is new enough, a driver that is, cuBLASLt.
    pub fn open(ordinal: usize) -> Result<Self, DeviceError> {
        let properties = properties(ordinal)?;
        let (capability, name) = (properties.capability, &properties.name);
        if capability < OLDEST {
            return Err(unavailable(format!(
                "{name} has compute capability {}.{}, the kernels need {}.{} or newer (Ampere); use --device cpu",
                capability.0, capability.1, OLDEST.0, OLDEST.1
            )));
        }
        let version = driver_version()?;
        if version < OLDEST_DRIVER {
            return Err(unavailable(format!(
                "the NVIDIA driver supports CUDA {}.{}, the kernels were built for 13.0: update the driver to 580 or newer",
                version / 1000,
                version % 1000 / 10
            )));
        }
        let failed = |error: DriverError| unavailable(format!("{name}: {}{}", describe(error), advice(error)));
        let context = CudaContext::new(ordinal).map_err(failed)?;
        // SAFETY: this driver orders its streams itself (`branches.rs`); nothing needs cudarc's events between streams.
        unsafe { context.disable_event_tracking() };
        let branches = Branches::new(&context).map_err(failed)?;
        let kernels = Kernels::load(&context)?;
        let mut arena = Arena::default();
        let blas = Blas::new(&mut arena, branches.stream(), name)?;
        Ok(Self {
            recording: Mutex::new(false),
            staging: Mutex::default(),
            blas: Mutex::new(blas),
            algorithms: Mutex::default(),
            kernels,
            arena: Mutex::new(arena),
            branches,
            context,
            properties,
        })
    }

    fn failed(&self, what: &str, error: DriverError) -> DeviceError {
        DeviceError::Failed {
            device: self.properties.name.clone(),
            what: what.to_owned(),
            cause: format!("{}{}", describe(error), advice(error)),
        }
    }

    fn refused(&self, what: &str, cause: impl Into<String>) -> DeviceError {
        DeviceError::Failed { device: self.properties.name.clone(), what: what.to_owned(), cause: cause.into() }
    }

    /// Makes the context current in this thread; cheap where it already is.
    fn enter(&self, what: &str) -> Result<sys::CUstream, DeviceError> {
        self.context.bind_to_thread().map_err(|error| self.failed(what, error))?;
        Ok(self.branches.stream().cu_stream())
    }

    fn is_recording(&self) -> bool {
        self.recording.lock().is_ok_and(|recording| *recording)
    }

    /// Refuses what neither a recording nor a branch can hold.
    fn in_order(&self, what: &str) -> Result<(), DeviceError> {
        if self.branches.open() {
            return Err(self.refused(what, "it cannot be part of a branch: it is not queued, or waits for the host"));
        }
        self.not_recording(what)
    }

    /// Refuses what a recording cannot hold.
    fn not_recording(&self, what: &str) -> Result<(), DeviceError> {
        if self.is_recording() {
            return Err(self.refused(what, "it cannot be part of a recorded step: it allocates or waits for the host"));
        }
        Ok(())
    }
}

impl Driver for Real {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        self.not_recording("an allocation")?;
        self.enter("an allocation")?;
        let Ok(mut arena) = self.arena.lock() else { return Err(self.refused("an allocation", "another thread panicked")) };
        arena.allocate(self.branches.stream(), bytes, &self.properties.name)
    }

    fn free(&self, address: Address) {
        // Work of a branch may still use it, and nothing orders the other one's after that: it waits for the join.
        if self.branches.keep(address) {
            return;
        }
        if let Ok(mut arena) = self.arena.lock() {
            arena.free(address);
        }
    }

    fn peak_memory(&self) -> u64 {
        self.arena.lock().map_or(0, |arena| arena.peak())
    }

    fn write(&self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.in_order("an upload")?;
        self.enter("an upload")?;
        let Ok(mut staging) = self.staging.lock() else { return Err(self.refused("an upload", "another thread panicked")) };
        staging.write(&self.context, self.branches.stream(), to, bytes).map_err(|error| self.failed("an upload", error))
    }

    fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.in_order("a download")?;
        let stream = self.enter("a download")?;
        // SAFETY: the caller's view lies in an allocation of this driver, and the copy is waited for before `bytes` is used.
        let copied = unsafe { result::memcpy_dtoh_async(bytes, from, stream) };
        copied.and_then(|()| self.branches.stream().synchronize()).map_err(|error| self.failed("a download", error))
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        let stream = self.enter("a copy")?;
        // SAFETY: both ranges lie in allocations of this driver: the callers' views were checked.
        unsafe { result::memcpy_dtod_async(to, from, bytes, stream) }.map_err(|error| self.failed("a copy", error))
    }

    fn launch(&self, kernel: Kernel, grid: Grid, parameters: &[&[u8]]) -> Result<(), DeviceError> {
        let stream = self.enter(kernel.name)?;
        let function = self.kernels.function(kernel, grid.shared, &self.properties.name)?;
        let mut pointers: Vec<*mut std::ffi::c_void> = parameters.iter().map(|p| p.as_ptr().cast_mut().cast()).collect();
        let [x, y, z] = grid.blocks;
        // SAFETY: the pointers are the kernel's parameters in order, each with the bytes of the struct in `abi.h`, which
        // the driver copies before it returns; the buffers they name outlive the work queued on its streams.
        let queued = unsafe { result::launch_kernel(function, (x, y, z), (grid.threads, 1, 1), grid.shared, stream, &mut pointers) };
        queued.map_err(|error| self.failed(&format!("{} {grid:?}", kernel.name), error))
    }

    fn gemm(&self, gemm: &Gemm) -> Result<(), DeviceError> {
        self.enter("a matrix product")?;
        let Ok(mut blas) = self.blas.lock() else { return Err(self.refused("a matrix product", "another thread panicked")) };
        let Ok(mut kept) = self.algorithms.lock() else { return Err(self.refused("a matrix product", "another thread panicked")) };
        let (may_run, context, arena, device) = (!self.is_recording(), &self.context, &self.arena, self.properties.name.as_str());
        let tuning = kept.as_mut().map(|kept| Tuning { kept, may_run, context, arena, device });
        let done = blas.run(gemm, self.branches.stream(), self.branches.lane(), tuning);
        done.map_err(|cause| self.refused(&format!("{gemm:?}"), cause))
    }

    fn keep_algorithms(&self, file: &Path) -> crate::Result<Option<String>> {
        let (kept, warning) = Kept::open(file, &self.properties.name, Blas::version())?;
        if let (Ok(mut blas), Ok(mut algorithms)) = (self.blas.lock(), self.algorithms.lock()) {
            blas.forget();
            *algorithms = Some(kept);
        }
        Ok(warning)
    }

    fn prepare_gemm_fp8(&self, rows: usize, columns: usize, depth: usize) -> Result<(), DeviceError> {
        let no_fp8 = |cause: String| DeviceError::no_fp8(&self.properties.name, cause);
        if let Some(lack) = self.properties.lacks_fp8() {
            return Err(no_fp8(lack));
        }
        self.enter("a matrix product")?;
        let Ok(mut blas) = self.blas.lock() else { return Err(self.refused("a matrix product", "another thread panicked")) };
        blas.prepare_fp8([rows, columns, depth]).map_err(no_fp8)
    }

    fn gemm_fp8(&self, gemm: &GemmFp8) -> Result<(), DeviceError> {
        self.enter("a matrix product")?;
        let Ok(mut blas) = self.blas.lock() else { return Err(self.refused("a matrix product", "another thread panicked")) };
        blas.run_fp8(gemm, self.branches.stream(), self.branches.lane()).map_err(|cause| self.refused(&format!("{gemm:?}"), cause))
    }

    fn tensor_map(&self, spec: &TensorSpec) -> Result<TensorMap, DeviceError> {
        use sys::CUtensorMapSwizzle::*;
        let rank = spec.dims.len();
        assert!(spec.strides.len() + 1 == rank && spec.tile.len() == rank, "a tensor of {rank} dimensions: {spec:?}");
        let swizzle = match spec.swizzle {
            0 => CU_TENSOR_MAP_SWIZZLE_NONE,
            32 => CU_TENSOR_MAP_SWIZZLE_32B,
            64 => CU_TENSOR_MAP_SWIZZLE_64B,
            128 => CU_TENSOR_MAP_SWIZZLE_128B,
            other => return Err(self.refused("a tensor map", format!("there is no swizzle of {other} bytes"))),
        };
        let element = match spec.element {
            Element::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            Element::F32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        };
        self.enter("a tensor map")?;
        let mut map = TensorMap([0; 16]);
        let steps = vec![1_u32; rank];
        // SAFETY: the arrays have `rank` entries (strides one fewer), checked above; `TensorMap` has the size and the
        // alignment of `CUtensorMap`.
        let status = unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                element,
                rank as u32,
                spec.address as *mut _,
                spec.dims.as_ptr(),
                spec.strides.as_ptr(),
                spec.tile.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        status.result().map_err(|error| self.refused("a tensor map", format!("{}: {spec:?}", describe(error))))?;
        Ok(map)
    }

    fn begin_branch(&self) -> Result<usize, DeviceError> {
        self.enter("a branch")?;
        let lane = self.branches.begin().map_err(|error| self.failed("a branch", error))?;
        lane.ok_or_else(|| self.refused("a branch", format!("{} lie within one another already", LANES - 1)))
    }

    fn end_branch(&self) -> Result<(), DeviceError> {
        if self.branches.end() { Ok(()) } else { Err(self.refused("the end of a branch", "none was begun")) }
    }

    fn join_branch(&self) -> Result<(), DeviceError> {
        self.enter("the join of a branch")?;
        let given_back = self.branches.join().map_err(|error| self.failed("the join of a branch", error))?;
        given_back.into_iter().for_each(|address| self.free(address));
        Ok(())
    }

    fn begin_recording(&self) -> Result<(), DeviceError> {
        let stream = self.enter("a recording")?;
        self.in_order("a recording")?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this driver's.
        unsafe { result::stream::begin_capture(stream, mode) }.map_err(|error| self.failed("a recording", error))?;
        if let Ok(mut recording) = self.recording.lock() {
            *recording = true;
        }
        Ok(())
    }

    fn end_recording(&self) -> Result<Box<dyn Recorded>, DeviceError> {
        let stream = self.enter("a recording")?;
        if let Ok(mut recording) = self.recording.lock() {
            *recording = false;
        }
        let failed = |error| self.failed("a recording", error);
        // SAFETY: the stream is this driver's, and a capture is in progress on it.
        let graph = unsafe { result::stream::end_capture(stream) }.map_err(failed)?;
        // SAFETY: the graph was just made; it is destroyed once, after its executable form was made of it.
        let executable = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        unsafe { result::graph::destroy(graph) }.map_err(failed)?;
        Ok(Box::new(Graph { executable: executable.map_err(failed)?, context: self.context.clone() }))
    }

    fn replay(&self, recorded: &dyn Recorded) -> Result<(), DeviceError> {
        self.in_order("a replay")?;
        let stream = self.enter("a replay")?;
        let Some(graph) = recorded.as_any().downcast_ref::<Graph>() else {
            return Err(self.refused("a replay", "the recording was made by another driver"));
        };
        // SAFETY: the executable graph lives as long as `graph`.
        unsafe { result::graph::launch(graph.executable, stream) }.map_err(|error| self.failed("a replay", error))
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.in_order("a wait")?;
        self.enter("the device")?;
        self.branches.stream().synchronize().map_err(|error| self.failed("a queued operation", error))
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_err() {
            return;
        }
        // Nothing may still use what is given back below; an error was reported already or cannot be any more.
        let _ = self.context.synchronize();
        if let Ok(blas) = self.blas.get_mut() {
            blas.release();
        }
        if let Ok(staging) = self.staging.get_mut() {
            staging.release();
        }
        if let Ok(arena) = self.arena.get_mut() {
            arena.release();
        }
    }
}

/// A recorded step.
#[derive(Debug)]
struct Graph {
    executable: sys::CUgraphExec,
    context: Arc<CudaContext>,
}

// SAFETY: the driver's calls on an executable graph may come from any thread; they are never concurrent here, since the
// graph is only launched through `&dyn Recorded` by the one backend that made it and destroyed when dropped.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Recorded for Graph {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made by `end_recording`, destroyed once. The driver waits for launches that are still running.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
        }
    }
}
