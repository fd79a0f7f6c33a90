//! What can go wrong on a device.

/// A device failed, or cannot do what was asked of it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DeviceError {
    /// The device's memory is exhausted.
    #[error(
        "{device} is out of memory: {requested} bytes were asked for; lower the batch size or the resolution, or set \
         activation_checkpointing to \"all\""
    )]
    OutOfMemory {
        /// Name of the device.
        device: String,
        /// Size of the allocation that failed.
        requested: u64,
    },
    /// The device cannot be used at all.
    #[error("device `{device}` is not available: {cause}")]
    Unavailable {
        /// Name of the device.
        device: String,
        /// Why, and what to do.
        cause: String,
    },
    /// An operation failed; what was queued behind it did not run.
    #[error("{what} failed on {device}: {cause}")]
    Failed {
        /// Name of the device.
        device: String,
        /// The operation.
        what: String,
        /// Why, and what to do.
        cause: String,
    },
}

impl DeviceError {
    /// Products in FP8 are not possible here.
    pub(super) fn no_fp8(device: &str, cause: impl std::fmt::Display) -> Self {
        let cause = format!("{cause}; set ladd.teacher_precision to \"bf16\"");
        Self::Failed { device: device.to_owned(), what: "planning a product in FP8".to_owned(), cause }
    }
}
