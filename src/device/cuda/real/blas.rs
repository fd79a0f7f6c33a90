//! Matrix products by cuBLASLt, with its epilogues. The algorithm for a shape is asked for once and kept, or measured
//! (`tuning.rs`).
//!
//! cuBLASLt thinks in columns: a row-major `[rows, columns]` matrix is its column-major `[columns, rows]`. So
//! `out = a b` is asked for as `outᵀ = bᵀ aᵀ`: its A is our `b`, its B our `a`, its rows our columns, and a bias along its
//! rows is our bias along the columns.

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::CudaStream;

use super::arena::Arena;
use super::tuning::Tuning;
use crate::device::DeviceError;
use crate::device::cuda::algorithms::{CANDIDATES, alignment};
use crate::device::cuda::driver::{Address, Element, Epilogue, Gemm, LANES, Operand};

/// Room for split sums; what NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

/// cuBLASLt and the algorithms found so far.
pub struct Blas {
    handle: sys::cublasLtHandle_t,
    /// Products of different lanes run side by side: each lane has its own.
    workspaces: [Address; LANES],
    plans: HashMap<Key, Plan>,
    /// Those of products in FP8, by rows, columns and length of the sums.
    fp8: HashMap<[usize; 3], Plan>,
}

// SAFETY: the handle and the descriptors may be used from any thread, one at a time: `Blas` stands behind a mutex.
unsafe impl Send for Blas {}

/// What decides about the algorithm: a product without its addresses, but with their alignments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    size: [usize; 3],
    lds: [usize; 2],
    transposed: [bool; 2],
    element: Element,
    accumulate: bool,
    epilogue: sys::cublasLtEpilogue_t,
    alignments: [u32; 3],
}

/// Descriptors and the algorithm of one kind of product.
pub struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

fn epilogue_kind(epilogue: Epilogue) -> sys::cublasLtEpilogue_t {
    use sys::cublasLtEpilogue_t::*;
    match epilogue {
        Epilogue::None => CUBLASLT_EPILOGUE_DEFAULT,
        Epilogue::Bias(_) => CUBLASLT_EPILOGUE_BIAS,
        Epilogue::BiasGelu { .. } => CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
        Epilogue::GeluBackward { .. } => CUBLASLT_EPILOGUE_DGELU,
    }
}

impl Key {
    fn new(gemm: &Gemm) -> Self {
        let Gemm { rows, columns, depth, a, b, out, element, accumulate, epilogue } = *gemm;
        Self {
            size: [rows, columns, depth],
            lds: [a.ld, b.ld],
            transposed: [a.transposed, b.transposed],
            element,
            accumulate,
            epilogue: epilogue_kind(epilogue),
            alignments: [a.address, b.address, out].map(alignment),
        }
    }
}

/// Sets one attribute of a descriptor from a value.
macro_rules! set {
    ($call:path, $target:expr, $attribute:expr, $value:expr) => {{
        let value = $value;
        // SAFETY: the descriptor is alive, and the value has the type that the attribute is documented with.
        unsafe { $call($target, $attribute, (&raw const value).cast::<c_void>(), size_of_val(&value)) }
    }};
}

mod fp8;

impl Blas {
    /// Opens cuBLASLt.
    ///
    /// # Errors
    /// When the library is not installed, does not start, or there is no memory for its workspace.
    pub fn new(arena: &mut Arena, stream: &CudaStream, device: &str) -> Result<Self, DeviceError> {
        let unavailable = |cause: String| DeviceError::Unavailable { device: "cuda".into(), cause };
        // SAFETY: only tries to open the library. It comes first, since every other call panics without it.
        if !unsafe { sys::is_culib_present() } {
            return Err(unavailable(
                "cuBLASLt was not found (libcublasLt.so.13): install CUDA 13's libraries, for example \
                 `pip install nvidia-cublas`, and add their folder to LD_LIBRARY_PATH"
                    .into(),
            ));
        }
        let handle = result::create_handle().map_err(|error| unavailable(format!("cuBLASLt does not start: {error}")))?;
        let mut workspaces = [0; LANES];
        for workspace in &mut workspaces {
            *workspace = arena.allocate(stream, WORKSPACE, device)?;
        }
        Ok(Self { handle, workspaces, plans: HashMap::new(), fp8: HashMap::new() })
    }

    /// Version of the library, as it tells it.
    pub fn version() -> u64 {
        // SAFETY: takes nothing; `new` has found the library.
        unsafe { sys::cublasLtGetVersion() as u64 }
    }

    /// Forgets the algorithms chosen so far.
    pub fn forget(&mut self) {
        self.plans.drain().for_each(|(_, plan)| plan.release());
    }

    /// Queues a product on the stream of a lane; the context must be current. The error says what went wrong.
    pub fn run(&mut self, gemm: &Gemm, stream: &CudaStream, lane: usize, tuning: Option<Tuning<'_>>) -> Result<(), String> {
        let key = Key::new(gemm);
        if !self.plans.contains_key(&key) {
            let wanted = if tuning.is_some() { CANDIDATES } else { 1 };
            let found = self.plan(gemm, &key, wanted);
            let (mut plan, candidates) = found.map_err(|error| format!("cuBLASLt has no algorithm for it: {error}"))?;
            if let Some(mut tuning) = tuning {
                plan.algorithm = tuning.choose(self, &plan, &candidates, gemm, stream, lane)?;
            }
            self.plans.insert(key, plan);
        }
        let Some(plan) = self.plans.get(&key) else { return Ok(()) };
        self.queue(plan, &plan.algorithm, gemm, stream, lane)
    }

    /// Whether an algorithm can compute a product of this kind here.
    pub fn check(&self, plan: &Plan, algorithm: &sys::cublasLtMatmulAlgo_t) -> Result<(), String> {
        let Plan { product, a, b, out, .. } = *plan;
        let mut result = std::mem::MaybeUninit::uninit();
        // SAFETY: all descriptors are alive; the result is only read where the call succeeded, which wrote it.
        let needed = unsafe {
            let status = sys::cublasLtMatmulAlgoCheck(self.handle, product, a, b, out, out, algorithm, result.as_mut_ptr());
            status.result().map(|()| result.assume_init().workspaceSize)
        };
        match needed {
            Ok(bytes) if bytes <= WORKSPACE => Ok(()),
            Ok(bytes) => Err(format!("it needs a workspace of {bytes} bytes")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Queues a product by this algorithm.
    pub fn queue(
        &self,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        gemm: &Gemm,
        stream: &CudaStream,
        lane: usize,
    ) -> Result<(), String> {
        plan.point(gemm).map_err(|error| error.to_string())?;
        let (alpha, beta) = (1.0_f32, if gemm.accumulate { 1.0_f32 } else { 0.0 });
        let out = gemm.out as *mut c_void;
        // SAFETY: descriptors and algorithm belong to this kind of product; addresses come from checked views; alpha and
        // beta are read before the call returns.
        let queued = unsafe {
            result::matmul(
                self.handle,
                plan.product,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                gemm.b.address as *const c_void,
                plan.a,
                gemm.a.address as *const c_void,
                plan.b,
                out,
                plan.out,
                out,
                plan.out,
                algorithm,
                self.workspaces[lane] as *mut c_void,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        };
        queued.map_err(|error| format!("cuBLASLt: {error}"))
    }

    /// Descriptors of a product and its best algorithms, the best one first: at least one, at most `wanted`.
    fn plan(&self, gemm: &Gemm, key: &Key, wanted: usize) -> Result<(Plan, Vec<sys::cublasLtMatmulAlgo_t>), result::CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Product;
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let Gemm { rows, columns, depth, .. } = *gemm;
        let float = sys::cudaDataType_t::CUDA_R_32F;
        let bf16 = sys::cudaDataType_t::CUDA_R_16BF;
        let product = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, float)?;
        for (attribute, operand) in [(Product::CUBLASLT_MATMUL_DESC_TRANSA, gemm.b), (Product::CUBLASLT_MATMUL_DESC_TRANSB, gemm.a)] {
            set!(result::set_matmul_desc_attribute, product, attribute, i32::from(operand.transposed))?;
        }
        set!(result::set_matmul_desc_attribute, product, Product::CUBLASLT_MATMUL_DESC_EPILOGUE, key.epilogue as u32)?;
        if let Epilogue::BiasGelu { .. } | Epilogue::GeluBackward { .. } = gemm.epilogue {
            set!(result::set_matmul_desc_attribute, product, Product::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, columns as i64)?;
        }
        let layout = |operand: Operand, rows: usize, columns: usize| {
            let (rows, columns) = if operand.transposed { (columns, rows) } else { (rows, columns) };
            result::create_matrix_layout(bf16, columns as u64, rows as u64, operand.ld as i64)
        };
        let element = if gemm.element == Element::F32 { float } else { bf16 };
        let plan = Plan {
            product,
            a: layout(gemm.b, depth, columns)?,
            b: layout(gemm.a, rows, depth)?,
            out: result::create_matrix_layout(element, columns as u64, rows as u64, columns as i64)?,
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        // The heuristic may look at the epilogue's pointers' alignment.
        plan.point(gemm)?;
        let preference = result::create_matmul_pref()?;
        set!(result::set_matmul_pref_attribute, preference, Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE as u64)?;
        // Split sums only by way of the workspace, in fp32: the same bits every time.
        let scheme = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        set!(result::set_matmul_pref_attribute, preference, Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, scheme)?;
        let [ours_a, ours_b, out] = key.alignments;
        for (attribute, bytes) in [
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, ours_b),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, ours_a),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out),
        ] {
            set!(result::set_matmul_pref_attribute, preference, attribute, bytes)?;
        }
        let mut found: Vec<sys::cublasLtMatmulHeuristicResult_t> = Vec::with_capacity(wanted);
        let mut count = 0;
        let Plan { product, a, b, out, .. } = plan;
        // SAFETY: all descriptors are alive; there is room for `wanted` results, of which the call writes `count`.
        let asked = unsafe {
            let (wanted, results) = (wanted as i32, found.as_mut_ptr());
            let status = sys::cublasLtMatmulAlgoGetHeuristic(self.handle, product, a, b, out, out, preference, wanted, results, &mut count);
            status.result().map(|()| found.set_len((count.max(0) as usize).min(found.capacity())))
        };
        // SAFETY: made above, destroyed once.
        unsafe { result::destroy_matmul_pref(preference) }?;
        asked?;
        let good: Vec<_> = found.iter().filter(|found| found.state.result().is_ok()).map(|found| found.algo).collect();
        let Some(algorithm) = good.first().copied() else {
            return Err(result::CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
        };
        Ok((Plan { algorithm, ..plan }, good))
    }

    /// Gives descriptors and handle back; nothing queued may use them. The workspaces are the arena's.
    pub fn release(&mut self) {
        self.forget();
        self.fp8.drain().for_each(|(_, plan)| plan.release());
        // SAFETY: made by `new`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Plan {
    /// Gives the descriptors back.
    fn release(self) {
        // SAFETY: made with the plan, destroyed once: products that were queued keep nothing of them.
        unsafe {
            let _ = result::destroy_matmul_desc(self.product);
            for layout in [self.a, self.b, self.out] {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }

    /// Sets the epilogue's addresses.
    fn point(&self, gemm: &Gemm) -> Result<(), result::CublasError> {
        use sys::cublasLtMatmulDescAttributes_t::*;
        let set = |attribute, address: Address| set!(result::set_matmul_desc_attribute, self.product, attribute, address);
        match gemm.epilogue {
            Epilogue::None => Ok(()),
            Epilogue::Bias(bias) => set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias),
            Epilogue::BiasGelu { bias, pre } => {
                set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
                set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, pre)
            }
            Epilogue::GeluBackward { pre } => set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, pre),
        }
    }
}
