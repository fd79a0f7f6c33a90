//! The emulated driver: runs the kernels' own source on the CPU (`kernels/emulator/`). Everything is done when the call
//! returns. Device memory is host memory, so an address is a pointer.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::Mutex;

use super::driver::{Address, Driver, Element, Epilogue, Gemm, Grid, Kernel, Operand, Properties, Recorded, TensorMap, TensorSpec};
use crate::device::DeviceError;

unsafe extern "C" {
    fn emu_allocate(bytes: usize) -> *mut c_void;
    fn emu_free(address: *mut c_void);
    fn emu_last_error() -> *const c_char;
    fn emu_launch(
        name: *const c_char,
        grid: *const c_uint,
        block: *const c_uint,
        shared: usize,
        parameters: *mut *mut c_void,
        seed: c_uint,
        late: c_int,
    ) -> c_int;
    fn emu_tensor_map(
        out: *mut TensorMap,
        element_bytes: c_int,
        rank: c_int,
        base: *mut c_void,
        dims: *const u64,
        strides: *const u64,
        tile: *const u32,
        swizzle: c_int,
    ) -> c_int;
}

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
    recording: Mutex<Option<Vec<Queued>>>,
}

#[derive(Debug, Clone)]
enum Queued {
    Copy { from: Address, to: Address, bytes: usize },
    Launch { kernel: Kernel, grid: Grid, parameters: Vec<Vec<u8>> },
    Gemm(Gemm),
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
        let properties = Properties { name: "emulator".to_owned(), capability, multiprocessors: 4, memory: 1 << 34 };
        Self { properties, schedule, recording: Mutex::new(None) }
    }

    fn failed(&self, what: &str, cause: impl Into<String>) -> DeviceError {
        DeviceError::Failed { device: self.properties.name.clone(), what: what.to_owned(), cause: cause.into() }
    }

    fn queue(&self, work: Queued) -> Result<(), DeviceError> {
        if let Ok(mut recording) = self.recording.lock()
            && let Some(recording) = recording.as_mut()
        {
            recording.push(work);
            return Ok(());
        }
        self.run(&work)
    }

    fn run(&self, work: &Queued) -> Result<(), DeviceError> {
        match work {
            Queued::Copy { from, to, bytes } => {
                // SAFETY: both ranges lie in allocations of this driver: the callers' views were checked.
                unsafe { std::ptr::copy_nonoverlapping(*from as *const u8, *to as *mut u8, *bytes) };
                Ok(())
            }
            Queued::Launch { kernel, grid, parameters } => {
                let name = CString::new(kernel.name).map_err(|_| self.failed(kernel.name, "its name holds a zero byte"))?;
                let mut pointers: Vec<*mut c_void> = parameters.iter().map(|p| p.as_ptr().cast_mut().cast()).collect();
                let block = [grid.threads, 1, 1];
                let Schedule { seed, late } = self.schedule;
                // SAFETY: the emulator reads as many pointers as the kernel has parameters and checks the rest itself.
                let status = unsafe {
                    emu_launch(
                        name.as_ptr(),
                        grid.blocks.as_ptr(),
                        block.as_ptr(),
                        grid.shared as usize,
                        pointers.as_mut_ptr(),
                        seed,
                        late.into(),
                    )
                };
                match status {
                    0 => Ok(()),
                    1 => Err(self.failed(kernel.name, format!("kernels/{}.cu has no kernel of this name", kernel.file))),
                    // SAFETY: the message is a zero-terminated string that lives until the next launch.
                    _ => Err(self.failed(kernel.name, unsafe { CStr::from_ptr(emu_last_error()) }.to_string_lossy())),
                }
            }
            Queued::Gemm(gemm) => {
                product(gemm);
                Ok(())
            }
        }
    }
}

impl Driver for Emulated {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        // SAFETY: any size may be asked for; null is checked.
        let address = unsafe { emu_allocate(bytes) } as Address;
        if address == 0 {
            return Err(DeviceError::OutOfMemory { device: self.properties.name.clone(), requested: bytes as u64 });
        }
        Ok(address)
    }

    fn free(&self, address: Address) {
        // SAFETY: buffers give back each address of `allocate` once.
        unsafe { emu_free(address as *mut c_void) };
    }

    fn write(&self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: the caller's view lies in an allocation of this driver.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        // SAFETY: as for `write`.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
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

    fn tensor_map(&self, spec: &TensorSpec) -> Result<TensorMap, DeviceError> {
        let mut map = TensorMap([0; 16]);
        // SAFETY: the arrays have as many entries as the rank says (strides: one fewer), which `TensorSpec` documents.
        let status = unsafe {
            emu_tensor_map(
                &mut map,
                spec.element.bytes() as c_int,
                spec.dims.len() as c_int,
                spec.address as *mut c_void,
                spec.dims.as_ptr(),
                spec.strides.as_ptr(),
                spec.tile.as_ptr(),
                spec.swizzle as c_int,
            )
        };
        if status == 0 { Ok(map) } else { Err(self.failed("tensor map", format!("{spec:?} breaks the copy engine's rules"))) }
    }

    fn begin_recording(&self) -> Result<(), DeviceError> {
        if let Ok(mut recording) = self.recording.lock() {
            *recording = Some(Vec::new());
        }
        Ok(())
    }

    fn end_recording(&self) -> Result<Box<dyn Recorded>, DeviceError> {
        let queued = self.recording.lock().ok().and_then(|mut recording| recording.take()).unwrap_or_default();
        Ok(Box::new(Tape(queued)))
    }

    fn replay(&self, recorded: &dyn Recorded) -> Result<(), DeviceError> {
        let Some(Tape(queued)) = recorded.as_any().downcast_ref() else {
            return Err(self.failed("replay", "the recording is another driver's"));
        };
        queued.iter().try_for_each(|work| self.run(work))
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

#[derive(Debug)]
struct Tape(Vec<Queued>);

impl Recorded for Tape {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// What cuBLASLt computes, in plain loops: bf16 operands, fp32 sums.
fn product(gemm: &Gemm) {
    let Gemm { rows, columns, depth, .. } = *gemm;
    let (a, b) = (operand(&gemm.a, rows, depth), operand(&gemm.b, depth, columns));
    let mut sums = vec![0.0_f32; rows * columns];
    for i in 0..rows {
        let sums = &mut sums[i * columns..][..columns];
        for p in 0..depth {
            let left = a[i * depth + p];
            sums.iter_mut().zip(&b[p * columns..][..columns]).for_each(|(s, b)| *s += left * b);
        }
    }
    use half::bf16;
    // SAFETY (all of the following): shapes and addresses come from checked views.
    let slice = |address: Address, len: usize| unsafe { std::slice::from_raw_parts_mut(address as *mut bf16, len) };
    let n = rows * columns;
    if gemm.accumulate {
        match gemm.element {
            Element::Bf16 => sums.iter_mut().zip(slice(gemm.out, n).iter()).for_each(|(s, o)| *s += o.to_f32()),
            Element::F32 => {
                let out = unsafe { std::slice::from_raw_parts(gemm.out as *const f32, n) };
                sums.iter_mut().zip(out).for_each(|(s, o)| *s += o);
            }
        }
    }
    let gelu = |x: f32| 0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x * x * x)).tanh());
    match gemm.epilogue {
        Epilogue::None => (),
        Epilogue::Bias(bias) => sums.iter_mut().enumerate().for_each(|(i, s)| *s += slice(bias, columns)[i % columns].to_f32()),
        Epilogue::BiasGelu { bias, pre } => {
            let pre = slice(pre, n);
            for (i, s) in sums.iter_mut().enumerate() {
                *s += slice(bias, columns)[i % columns].to_f32();
                pre[i] = bf16::from_f32(*s);
                *s = gelu(*s);
            }
        }
        Epilogue::GeluBackward { pre } => {
            for (s, x) in sums.iter_mut().zip(slice(pre, n).iter()) {
                let x = x.to_f32();
                let t = (0.797_884_6 * (x + 0.044_715 * x * x * x)).tanh();
                *s *= 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * 0.797_884_6 * (1.0 + 3.0 * 0.044_715 * x * x);
            }
        }
    }
    match gemm.element {
        Element::Bf16 => slice(gemm.out, n).iter_mut().zip(&sums).for_each(|(o, s)| *o = bf16::from_f32(*s)),
        Element::F32 => unsafe { std::slice::from_raw_parts_mut(gemm.out as *mut f32, n) }.copy_from_slice(&sums),
    }
}

fn operand(operand: &Operand, rows: usize, columns: usize) -> Vec<f32> {
    let at = |i: usize| {
        // SAFETY: shapes and addresses come from checked views.
        unsafe { (*(operand.address as *const half::bf16).add(i)).to_f32() }
    };
    let mut values = Vec::with_capacity(rows * columns);
    for i in 0..rows {
        for j in 0..columns {
            values.push(at(if operand.transposed { j * operand.ld + i } else { i * operand.ld + j }));
        }
    }
    values
}
