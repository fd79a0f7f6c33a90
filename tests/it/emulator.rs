//! The emulator that runs the kernels on the CPU: each primitive against its definition, each kind of mistake against
//! the report that it must give. The kernels are in `kernels/emulator/tests/`.

mod mistakes;
mod primitives;

use bytemuck::Pod;
use half::bf16;
use ladd_fast::device::DeviceError;
use ladd_fast::device::cuda::driver::{Address, Driver, Grid, Kernel};
use ladd_fast::device::cuda::emulated::{Emulated, Schedule};

/// A driver and short ways to use it.
struct Rig {
    driver: Emulated,
}

impl Rig {
    fn new(schedule: Schedule) -> Self {
        println!("{schedule:?}");
        Self { driver: Emulated::new(schedule) }
    }

    fn every() -> impl Iterator<Item = Self> {
        Schedule::ALL.into_iter().map(Self::new)
    }

    fn upload<T: Pod>(&self, values: &[T]) -> Address {
        let address = self.driver.allocate(size_of_val(values)).unwrap();
        self.driver.write(address, bytemuck::cast_slice(values)).unwrap();
        address
    }

    fn blank<T: Pod>(&self, len: usize) -> Address {
        self.driver.allocate(len * size_of::<T>()).unwrap()
    }

    fn download<T: Pod>(&self, address: Address, len: usize) -> Vec<T> {
        let mut values = vec![T::zeroed(); len];
        self.driver.read(address, bytemuck::cast_slice_mut(&mut values)).unwrap();
        values
    }

    fn launch(&self, name: &'static str, grid: Grid, parameters: &[&[u8]]) -> Result<(), DeviceError> {
        self.driver.launch(Kernel { file: "emulator/tests", name }, grid, parameters)
    }

    /// Runs a kernel that must fail and returns the report.
    fn failure(&self, name: &'static str, grid: Grid, parameters: &[&[u8]]) -> String {
        let error = self.launch(name, grid, parameters).expect_err(name).to_string();
        println!("{error}");
        error
    }
}

/// Whether this process has the variable; if it has not, runs the test in one that does, where it must succeed.
fn with_variable(test: &str, variable: &str, value: &str) -> bool {
    if std::env::var(variable).is_ok_and(|found| found == value) {
        return true;
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap()).args([test, "--exact"]).env(variable, value).status();
    assert!(status.unwrap().success());
    false
}

fn grid(blocks: u32, threads: u32, shared: u32) -> Grid {
    Grid { blocks: [blocks, 1, 1], threads, shared }
}

fn bytes<T: Pod>(value: &T) -> &[u8] {
    bytemuck::bytes_of(value)
}

/// Small numbers that bf16 holds exactly, and whose products fp32 sums exactly.
fn small(len: usize, seed: usize) -> Vec<bf16> {
    (0..len).map(|i| bf16::from_f32(((i * 7919 + seed * 104_729) % 127) as f32 - 63.0)).collect()
}
