//! The benchmark of steps and sampling (`benches/ladd_step/`) at tiny sizes, and its count of operations against the
//! matrix products that a step really queues.

// Some of it is for the benchmark's command line.
#[allow(dead_code)]
#[path = "../../benches/ladd_step/cases.rs"]
mod cases;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::cuda::Cuda;
use ladd_fast::device::cuda::driver::{Address, Driver, Gemm, GemmFp8, Grid, Kernel, Properties, Recorded, TensorMap, TensorSpec};
use ladd_fast::device::cuda::emulated::{Emulated, Schedule};
use ladd_fast::device::{Backend, DeviceError};

use cases::{Case, Mode, Model, Variant};

const MODES: [Mode; 5] = [Mode::Simultaneous, Mode::Alternating, Mode::Sampling, Mode::Forward, Mode::ForwardBackward];

fn tiny(mode: Mode, batch: usize) -> Case {
    let model = Model::named("tiny").unwrap();
    let (resolution, text) = (model.resolution, model.text);
    Case { model, mode, batch, resolution, text, checkpointing: false, variant: Variant::default() }
}

/// The emulated device, counting the operations of the matrix products it is given.
#[derive(Debug)]
struct Counting {
    inner: Emulated,
    flops: AtomicU64,
}

impl Driver for Counting {
    fn gemm(&self, gemm: &Gemm) -> Result<(), DeviceError> {
        self.flops.fetch_add(2 * (gemm.rows * gemm.columns * gemm.depth) as u64, Ordering::Relaxed);
        self.inner.gemm(gemm)
    }

    fn prepare_gemm_fp8(&self, rows: usize, columns: usize, depth: usize) -> Result<(), DeviceError> {
        self.inner.prepare_gemm_fp8(rows, columns, depth)
    }

    fn gemm_fp8(&self, gemm: &GemmFp8) -> Result<(), DeviceError> {
        self.flops.fetch_add(2 * (gemm.rows * gemm.columns * gemm.depth) as u64, Ordering::Relaxed);
        self.inner.gemm_fp8(gemm)
    }

    fn properties(&self) -> &Properties {
        self.inner.properties()
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        self.inner.allocate(bytes)
    }

    fn free(&self, address: Address) {
        self.inner.free(address);
    }

    fn peak_memory(&self) -> u64 {
        self.inner.peak_memory()
    }

    fn write(&self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.inner.write(to, bytes)
    }

    fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.inner.read(from, bytes)
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        self.inner.copy(from, to, bytes)
    }

    fn launch(&self, kernel: Kernel, grid: Grid, parameters: &[&[u8]]) -> Result<(), DeviceError> {
        self.inner.launch(kernel, grid, parameters)
    }

    fn keep_algorithms(&self, file: &Path) -> ladd_fast::Result<Option<String>> {
        self.inner.keep_algorithms(file)
    }

    fn tensor_map(&self, spec: &TensorSpec) -> Result<TensorMap, DeviceError> {
        self.inner.tensor_map(spec)
    }

    fn begin_branch(&self) -> Result<usize, DeviceError> {
        self.inner.begin_branch()
    }

    fn end_branch(&self) -> Result<(), DeviceError> {
        self.inner.end_branch()
    }

    fn join_branch(&self) -> Result<(), DeviceError> {
        self.inner.join_branch()
    }

    fn begin_recording(&self) -> Result<(), DeviceError> {
        self.inner.begin_recording()
    }

    fn end_recording(&self) -> Result<Box<dyn Recorded>, DeviceError> {
        self.inner.end_recording()
    }

    fn replay(&self, recorded: &dyn Recorded) -> Result<(), DeviceError> {
        self.inner.replay(recorded)
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.inner.synchronize()
    }
}

/// As it is, recorded, replayed.
fn three_times<B: Backend>(b: &B, case: &Case) {
    let mut run = case.start(b).unwrap();
    (0..3).for_each(|_| run().unwrap());
}

#[test]
fn every_mode_runs_on_every_device() {
    for mode in MODES {
        let cuda = Cuda::new(Arc::new(Emulated::new(Schedule::default())));
        three_times(&cuda, &tiny(mode, 2));
        assert!(cuda.peak_memory() > 0);
        three_times(&Cpu::<f32>::new(), &tiny(mode, 2));
    }
    let checkpointing = Case { checkpointing: true, ..tiny(Mode::Simultaneous, 1) };
    three_times(&Cuda::new(Arc::new(Emulated::new(Schedule::default()))), &checkpointing);
}

#[test]
fn every_preset_can_be_measured() {
    for name in ["demo", "sd3-medium", "sd3.5-medium", "sd3.5-large"] {
        let model = Model::named(name).unwrap();
        let case = Case { resolution: model.resolution, text: model.text, ..tiny(Mode::Simultaneous, 2) };
        let [both, turns, one] = [Mode::Simultaneous, Mode::Alternating, Mode::Forward]
            .map(|mode| Case { model: model.clone(), mode, ..case.clone() }.flops().unwrap().total() as f64);
        // 1 + 2 student, 2 + 1 teacher; then one student and two teacher forwards more, less the heads' share.
        let ratios = (both / one, turns / one);
        assert!((5.5..7.5).contains(&ratios.0) && (7.5..9.5).contains(&ratios.1), "{name}: {ratios:?}");
    }
    assert!(Model::named("sd2").is_err());
}

#[test]
fn the_count_of_operations_is_that_of_the_products_that_are_queued() {
    for mode in MODES {
        let case = tiny(mode, 2);
        let driver = Arc::new(Counting { inner: Emulated::new(Schedule::default()), flops: AtomicU64::new(0) });
        let cuda = Cuda::new(driver.clone());
        let mut run = case.start(&cuda).unwrap();
        run().unwrap();
        let (queued, counted) = (driver.flops.load(Ordering::Relaxed), case.flops().unwrap().linear);
        // A frozen backward may also take the gradient of the first block's context, which nobody needs.
        let h = case.config().hidden();
        let spare = 2 * (case.batch * case.text * 3 * h * h) as u64;
        let allowed = if matches!(mode, Mode::Simultaneous | Mode::Alternating) { spare } else { 0 };
        assert!(counted <= queued && queued <= counted + allowed, "{mode:?}: {counted} counted, {queued} queued");
    }
}
