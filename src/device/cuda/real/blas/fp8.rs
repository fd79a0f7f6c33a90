//! Products in FP8 by cuBLASLt: e4m3 operands in the TN form, which `x Wᵀ` of row-major matrices is, with a scale for each of
//! their rows (`OUTER_VEC_32F`, CUDA 12.9 and newer, on Hopper). Sums are carried into full fp32 sums every so often
//! (`FAST_ACCUM` stays off). The bias is the epilogue; GELU is not: the kernel that quantises the next operand applies it.

use std::ffi::c_void;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::CudaStream;

use super::{Blas, Plan, WORKSPACE};
use crate::device::cuda::driver::{Address, GemmFp8};

/// What every address is a multiple of, in bytes.
const ALIGNMENT: u32 = 16;

/// Addresses that change from call to call: of the scales of both operands, and of the bias.
struct Pointers {
    a_scales: Address,
    b_scales: Address,
    bias: Address,
}

impl Blas {
    /// Finds an algorithm for rows, columns and length of the sums. The error says what cuBLASLt answers.
    pub fn prepare_fp8(&mut self, size: [usize; 3]) -> Result<(), String> {
        if !self.fp8.contains_key(&size) {
            let plan = self.plan_fp8(size).map_err(|error| {
                let [rows, columns, depth] = size;
                format!(
                    "cuBLASLt has no algorithm for {rows} x {columns} with sums of {depth} and a scale for each row ({error}); it \
                     needs CUDA 12.9 or newer and compute capability 9.0"
                )
            })?;
            self.fp8.insert(size, plan);
        }
        Ok(())
    }

    /// Queues a product on the stream of a lane; the context must be current. The error says what went wrong.
    pub fn run_fp8(&mut self, gemm: &GemmFp8, stream: &CudaStream, lane: usize) -> Result<(), String> {
        let size = [gemm.rows, gemm.columns, gemm.depth];
        self.prepare_fp8(size)?;
        let Some(plan) = self.fp8.get(&size) else { return Ok(()) };
        let GemmFp8 { a_scales, b_scales, bias, .. } = *gemm;
        point(plan, &Pointers { a_scales, b_scales, bias }).map_err(|error| error.to_string())?;
        let (alpha, beta) = (1.0_f32, 0.0_f32);
        let out = gemm.out as *mut c_void;
        // SAFETY: descriptors and algorithm belong to this size; addresses come from checked views; alpha and beta are read
        // before the call returns.
        let queued = unsafe {
            result::matmul(
                self.handle,
                plan.product,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                gemm.b as *const c_void,
                plan.a,
                gemm.a as *const c_void,
                plan.b,
                out,
                plan.out,
                out,
                plan.out,
                &plan.algorithm,
                self.workspaces[lane] as *mut c_void,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        };
        queued.map_err(|error| format!("cuBLASLt: {error}"))
    }

    fn plan_fp8(&self, [rows, columns, depth]: [usize; 3]) -> Result<Plan, result::CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Product;
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let e4m3 = sys::cudaDataType_t::CUDA_R_8F_E4M3;
        let product = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F)?;
        let row_scales = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F as i32;
        for (attribute, value) in [
            (Product::CUBLASLT_MATMUL_DESC_TRANSA, 1),
            (Product::CUBLASLT_MATMUL_DESC_TRANSB, 0),
            (Product::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, row_scales),
            (Product::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, row_scales),
            (Product::CUBLASLT_MATMUL_DESC_EPILOGUE, sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as i32),
            (Product::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, sys::cudaDataType_t::CUDA_R_16BF as i32),
        ] {
            set!(result::set_matmul_desc_attribute, product, attribute, value)?;
        }
        let plan = Plan {
            product,
            a: result::create_matrix_layout(e4m3, depth as u64, columns as u64, depth as i64)?,
            b: result::create_matrix_layout(e4m3, depth as u64, rows as u64, depth as i64)?,
            out: result::create_matrix_layout(sys::cudaDataType_t::CUDA_R_16BF, columns as u64, rows as u64, columns as i64)?,
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        // The heuristic wants pointers that are there, and reads nothing behind them.
        let [there, ..] = self.workspaces;
        point(&plan, &Pointers { a_scales: there, b_scales: there, bias: there })?;
        let preference = result::create_matmul_pref()?;
        set!(result::set_matmul_pref_attribute, preference, Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE as u64)?;
        // Split sums only by way of the workspace, in fp32: the same bits every time.
        let scheme = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        set!(result::set_matmul_pref_attribute, preference, Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, scheme)?;
        for attribute in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set!(result::set_matmul_pref_attribute, preference, attribute, ALIGNMENT)?;
        }
        // SAFETY: all descriptors are alive.
        let found = unsafe { result::get_matmul_algo_heuristic(self.handle, plan.product, plan.a, plan.b, plan.out, plan.out, preference) };
        // SAFETY: made above, destroyed once.
        unsafe { result::destroy_matmul_pref(preference) }?;
        match found {
            Ok(found) => Ok(Plan { algorithm: found.algo, ..plan }),
            Err(error) => {
                plan.release();
                Err(error)
            }
        }
    }
}

/// Sets a product's addresses. cuBLASLt's A is our b.
fn point(plan: &Plan, pointers: &Pointers) -> Result<(), result::CublasError> {
    use sys::cublasLtMatmulDescAttributes_t::*;
    for (attribute, address) in [
        (CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, pointers.b_scales),
        (CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, pointers.a_scales),
        (CUBLASLT_MATMUL_DESC_BIAS_POINTER, pointers.bias),
    ] {
        set!(result::set_matmul_desc_attribute, plan.product, attribute, address)?;
    }
    Ok(())
}
