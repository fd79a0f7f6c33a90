//! The emulator's C functions: those linked into the program, or those of the shared library that the environment variable
//! `LADD_EMULATOR_LIBRARY` names. `scripts/mutate-kernels` tests changed kernels that way without linking the tests anew.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use crate::device::cuda::driver::TensorMap;

type Launch = unsafe extern "C" fn(
    name: *const c_char,
    grid: *const c_uint,
    threads: c_uint,
    shared: usize,
    parameters: *const *const c_void,
    sizes: *const usize,
    count: usize,
    seed: c_uint,
    late: c_int,
    owner: u64,
    observed: c_int,
) -> c_int;

type Observed = unsafe extern "C" fn(count: *mut usize) -> *const Access;

type EncodeTensorMap = unsafe extern "C" fn(
    out: *mut TensorMap,
    element_bytes: c_int,
    rank: c_int,
    base: *mut c_void,
    dims: *const u64,
    strides: *const u64,
    tile: *const u32,
    swizzle: c_uint,
) -> c_int;

/// Bytes of device memory that a launch touched, as `kernels/emulator/accesses.h` lays it out.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Access {
    pub first: u64,
    pub end: u64,
    pub written: u64,
}

/// The functions of `kernels/emulator/launch.cpp`, which says what they do.
#[derive(Debug)]
pub struct Library {
    pub allocate: unsafe extern "C" fn(bytes: usize, owner: u64) -> *mut c_void,
    pub free: unsafe extern "C" fn(address: *mut c_void),
    pub accessible: unsafe extern "C" fn(address: *const c_void, bytes: usize) -> c_int,
    pub describe: unsafe extern "C" fn(address: *const c_void) -> *const c_char,
    pub last_error: unsafe extern "C" fn() -> *const c_char,
    pub kernels: unsafe extern "C" fn() -> *const c_char,
    pub launch: Launch,
    pub accesses: Observed,
    pub tensor_map: EncodeTensorMap,
}

unsafe extern "C" {
    fn emu_allocate(bytes: usize, owner: u64) -> *mut c_void;
    fn emu_free(address: *mut c_void);
    fn emu_accessible(address: *const c_void, bytes: usize) -> c_int;
    fn emu_describe(address: *const c_void) -> *const c_char;
    fn emu_last_error() -> *const c_char;
    fn emu_kernels() -> *const c_char;
    fn emu_launch(
        name: *const c_char,
        grid: *const c_uint,
        threads: c_uint,
        shared: usize,
        parameters: *const *const c_void,
        sizes: *const usize,
        count: usize,
        seed: c_uint,
        late: c_int,
        owner: u64,
        observed: c_int,
    ) -> c_int;
    fn emu_accesses(count: *mut usize) -> *const Access;
    fn emu_tensor_map(
        out: *mut TensorMap,
        element_bytes: c_int,
        rank: c_int,
        base: *mut c_void,
        dims: *const u64,
        strides: *const u64,
        tile: *const u32,
        swizzle: c_uint,
    ) -> c_int;
    fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *mut c_char;
}

const BUILT_IN: Library = Library {
    allocate: emu_allocate,
    free: emu_free,
    accessible: emu_accessible,
    describe: emu_describe,
    last_error: emu_last_error,
    kernels: emu_kernels,
    launch: emu_launch,
    accesses: emu_accesses,
    tensor_map: emu_tensor_map,
};

impl Library {
    /// The library of this process; chosen once.
    pub fn get() -> &'static Self {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        LIBRARY.get_or_init(|| match std::env::var("LADD_EMULATOR_LIBRARY") {
            Ok(file) => Self::open(&file).unwrap_or_else(|cause| panic!("LADD_EMULATOR_LIBRARY={file}: {cause}")),
            Err(_) => BUILT_IN,
        })
    }

    fn open(file: &str) -> Result<Self, String> {
        const RTLD_NOW: c_int = 2;
        let name = CString::new(file).map_err(|_| "its name holds a zero byte")?;
        // SAFETY: the name is zero-terminated. The library is one that was built from kernels/, whose only initialisers
        // register kernels.
        let library = unsafe { dlopen(name.as_ptr(), RTLD_NOW) };
        if library.is_null() {
            // SAFETY: after a failure the text is there, until this thread's next call of the loader.
            return Err(unsafe { CStr::from_ptr(dlerror()) }.to_string_lossy().into_owned());
        }
        let symbol = |name: &'static CStr| {
            // SAFETY: the library is open and stays so, and the name is zero-terminated.
            let address = unsafe { dlsym(library, name.as_ptr()) };
            if address.is_null() { Err(format!("it has no function {}", name.to_string_lossy())) } else { Ok(address) }
        };
        // SAFETY: the symbols are functions of kernels/emulator/launch.cpp with these types.
        unsafe {
            use std::mem::transmute;
            Ok(Self {
                allocate: transmute::<*mut c_void, unsafe extern "C" fn(usize, u64) -> *mut c_void>(symbol(c"emu_allocate")?),
                free: transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(symbol(c"emu_free")?),
                accessible: transmute::<*mut c_void, unsafe extern "C" fn(*const c_void, usize) -> c_int>(symbol(c"emu_accessible")?),
                describe: transmute::<*mut c_void, unsafe extern "C" fn(*const c_void) -> *const c_char>(symbol(c"emu_describe")?),
                last_error: transmute::<*mut c_void, unsafe extern "C" fn() -> *const c_char>(symbol(c"emu_last_error")?),
                kernels: transmute::<*mut c_void, unsafe extern "C" fn() -> *const c_char>(symbol(c"emu_kernels")?),
                launch: transmute::<*mut c_void, Launch>(symbol(c"emu_launch")?),
                accesses: transmute::<*mut c_void, Observed>(symbol(c"emu_accesses")?),
                tensor_map: transmute::<*mut c_void, EncodeTensorMap>(symbol(c"emu_tensor_map")?),
            })
        }
    }
}
