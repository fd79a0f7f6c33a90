//! Measures cuBLASLt's candidates for a product and chooses among them; `algorithms.rs` decides and remembers.

use std::sync::{Arc, Mutex};

use cudarc::cublaslt::sys;
use cudarc::driver::{CudaContext, CudaStream, DriverError, sys as driver_sys};

use super::arena::Arena;
use super::blas::{Blas, Plan};
use crate::device::cuda::algorithms::{Algorithm, Kept, alignment, fastest};
use crate::device::cuda::driver::{Address, Epilogue, Gemm};

/// Runs of a candidate that are counted, behind one that is not.
const RUNS: usize = 7;
/// Blocks of the arena are aligned to as many bytes.
const ALIGNMENT: usize = 256;

/// What a measurement needs.
pub struct Tuning<'a> {
    /// Choices so far.
    pub kept: &'a mut Kept,
    /// Whether products may run now: not while a step is recorded.
    pub may_run: bool,
    pub context: &'a Arc<CudaContext>,
    pub arena: &'a Mutex<Arena>,
    pub device: &'a str,
}

impl Tuning<'_> {
    /// The algorithm of a product: the kept one, else the fastest of the candidates, which is kept from then on. While a step
    /// is recorded, or where there is no memory to measure in, it is the first.
    pub fn choose(
        &mut self,
        blas: &Blas,
        plan: &Plan,
        candidates: &[sys::cublasLtMatmulAlgo_t],
        gemm: &Gemm,
        stream: &CudaStream,
        lane: usize,
    ) -> Result<sys::cublasLtMatmulAlgo_t, String> {
        if let Some(Algorithm(data)) = self.kept.get(gemm) {
            let algorithm = sys::cublasLtMatmulAlgo_t { data };
            let refused =
                |error| format!("{}: the algorithm kept for it is refused ({error}); delete the file", self.kept.path().display());
            return blas.check(plan, &algorithm).map(|()| algorithm).map_err(refused);
        }
        let Some(first) = candidates.first().copied() else { return Err("cuBLASLt has no algorithm for it".into()) };
        if !self.may_run {
            return Ok(first);
        }
        let times = self.measure(blas, plan, candidates, gemm, stream, lane).map_err(|error| format!("measuring it: {error}"))?;
        let chosen = times.as_deref().and_then(fastest).map_or(first, |best| candidates[best]);
        self.kept.keep(gemm, Algorithm(chosen.data)).map_err(|error| error.to_string())?;
        Ok(chosen)
    }

    /// Milliseconds of every run of every candidate; `None` where there is no memory for it. What the product would write
    /// goes to memory of its own: the live result may hold a sum that is added to.
    fn measure(
        &self,
        blas: &Blas,
        plan: &Plan,
        candidates: &[sys::cublasLtMatmulAlgo_t],
        gemm: &Gemm,
        stream: &CudaStream,
        lane: usize,
    ) -> Result<Option<Vec<Vec<f32>>>, DriverError> {
        let values = gemm.rows * gemm.columns;
        let Some(out) = self.room(stream, values * gemm.element.bytes()) else { return Ok(None) };
        let like = |room: Address, live: Address| room + u64::from(alignment(live)) % ALIGNMENT as u64;
        let mut trial = Gemm { out: like(out, gemm.out), ..*gemm };
        let mut rooms = vec![out];
        if let Epilogue::BiasGelu { bias, pre } = gemm.epilogue {
            match self.room(stream, 2 * values) {
                Some(room) => {
                    rooms.push(room);
                    trial.epilogue = Epilogue::BiasGelu { bias, pre: like(room, pre) };
                }
                None => {
                    self.give_back(&rooms);
                    return Ok(None);
                }
            }
        }
        let times = self.times(blas, plan, candidates, &trial, stream, lane);
        // The measurement has been waited for; and whoever gets the memory is behind it on the stream, or behind a wait.
        self.give_back(&rooms);
        times.map(Some)
    }

    fn times(
        &self,
        blas: &Blas,
        plan: &Plan,
        candidates: &[sys::cublasLtMatmulAlgo_t],
        trial: &Gemm,
        stream: &CudaStream,
        lane: usize,
    ) -> Result<Vec<Vec<f32>>, DriverError> {
        let event = || self.context.new_event(Some(driver_sys::CUevent_flags::CU_EVENT_DEFAULT));
        let (begin, end) = (event()?, event()?);
        // Other branches may still be at work.
        self.context.synchronize()?;
        let mut all = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let mut times = Vec::with_capacity(RUNS);
            for run in 0..=RUNS {
                begin.record(stream)?;
                let queued = blas.queue(plan, candidate, trial, stream, lane);
                end.record(stream)?;
                let milliseconds = begin.elapsed_ms(&end)?;
                if queued.is_err() {
                    times.clear();
                    break;
                }
                if run > 0 {
                    times.push(milliseconds);
                }
            }
            all.push(times);
        }
        Ok(all)
    }

    /// Zeroed memory for a result of `bytes` bytes at any alignment.
    fn room(&self, stream: &CudaStream, bytes: usize) -> Option<Address> {
        self.arena.lock().ok()?.allocate(stream, bytes + ALIGNMENT, self.device).ok()
    }

    fn give_back(&self, rooms: &[Address]) {
        if let Ok(mut arena) = self.arena.lock() {
            rooms.iter().for_each(|room| arena.free(*room));
        }
    }
}
