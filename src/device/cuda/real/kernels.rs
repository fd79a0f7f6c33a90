//! The kernels as built by nvcc: loads the embedded fatbins and finds functions in them.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex};

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::{advice, describe};
use crate::device::DeviceError;
use crate::device::cuda::built::FATBINS;
use crate::device::cuda::driver::Kernel;

/// Dynamic shared memory that a kernel may use without asking for it.
const SHARED_BY_DEFAULT: u32 = 48 << 10;

/// All modules, and the functions found so far.
#[derive(Debug)]
pub struct Kernels {
    modules: HashMap<&'static str, sys::CUmodule>,
    functions: Mutex<HashMap<Kernel, Found>>,
    /// Keeps the modules' context.
    context: Arc<CudaContext>,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    function: sys::CUfunction,
    shared: u32,
}

// SAFETY: modules and functions are handles that the driver lets any thread use.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}
// SAFETY: as above.
unsafe impl Send for Found {}

impl Kernels {
    /// Loads every fatbin into the current context.
    ///
    /// # Errors
    /// When the driver does not take one of them.
    pub fn load(context: &Arc<CudaContext>) -> Result<Self, DeviceError> {
        let mut modules = HashMap::new();
        for (file, fatbin) in FATBINS {
            // SAFETY: a fatbin as nvcc wrote it; it carries its own size.
            let module = unsafe { result::module::load_data(fatbin.as_ptr().cast::<c_void>()) };
            let module = module.map_err(|error| {
                let cause = format!("the driver does not load kernels/{file}.cu: {}{}", describe(error), advice(error));
                DeviceError::Unavailable { device: "cuda".into(), cause }
            })?;
            modules.insert(*file, module);
        }
        Ok(Self { modules, functions: Mutex::default(), context: context.clone() })
    }

    /// A function that may be launched with `shared` bytes of dynamic shared memory.
    ///
    /// # Errors
    /// When there is no such kernel, or the device has less shared memory.
    pub fn function(&self, kernel: Kernel, shared: u32, device: &str) -> Result<sys::CUfunction, DeviceError> {
        let fail = |cause: String| DeviceError::Failed { device: device.to_owned(), what: kernel.name.to_owned(), cause };
        let Ok(mut functions) = self.functions.lock() else { return Err(fail("another thread panicked".into())) };
        let found = match functions.get(&kernel) {
            Some(found) => *found,
            None => Found { function: self.find(kernel).map_err(fail)?, shared: SHARED_BY_DEFAULT },
        };
        if shared > found.shared {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a loaded module.
            let set = unsafe { result::function::set_function_attribute(found.function, attribute, shared as i32) };
            set.map_err(|error| fail(format!("{shared} bytes of shared memory are too many: {}", describe(error))))?;
        }
        functions.insert(kernel, Found { shared: found.shared.max(shared), ..found });
        Ok(found.function)
    }

    fn find(&self, kernel: Kernel) -> Result<sys::CUfunction, String> {
        let module = self.modules.get(kernel.file).ok_or_else(|| format!("kernels/{}.cu was not built", kernel.file))?;
        let name = CString::new(kernel.name).map_err(|_| "its name holds a zero byte".to_owned())?;
        // SAFETY: the module is loaded and stays so.
        let found = unsafe { result::module::get_function(*module, name) };
        found.map_err(|error: DriverError| format!("kernels/{}.cu does not hold it for this device: {}", kernel.file, describe(error)))
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            for module in self.modules.values() {
                // SAFETY: loaded by `load`, unloaded once, and the driver waits for what still runs.
                let _ = unsafe { result::module::unload(*module) };
            }
        }
    }
}
