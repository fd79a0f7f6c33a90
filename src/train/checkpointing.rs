//! Activation checkpointing: for some blocks only the inputs are kept, and the backward runs those blocks again. It
//! changes time and memory, not a bit of the result.

use serde::{Deserialize, Serialize};

use crate::device::DeviceError;
use crate::{Error, Result};

/// Which blocks are checkpointed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checkpointing {
    /// As few as the device's memory allows: none at first, then a quarter of the blocks more after each time that it is
    /// exhausted.
    #[default]
    Auto,
    /// None.
    Off,
    /// All.
    All,
}

/// Which part of a network's blocks is checkpointed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpointed {
    quarters: usize,
}

impl Checkpointed {
    /// No block.
    pub const NONE: Self = Self { quarters: 0 };
    /// Every block.
    pub const ALL: Self = Self { quarters: 4 };

    /// How many of `blocks` blocks.
    pub fn of(self, blocks: usize) -> usize {
        (blocks * self.quarters).div_ceil(4)
    }
}

impl Checkpointing {
    /// Plans with as few checkpointed blocks as there is memory for.
    ///
    /// # Errors
    /// What `plan` returns at last: the device's memory is exhausted whatever is checkpointed, or something else failed.
    pub fn plan<T>(self, mut plan: impl FnMut(Checkpointed) -> Result<T>) -> Result<T> {
        let (first, last) = match self {
            Self::Auto => (0, 4),
            Self::Off => (0, 0),
            Self::All => (4, 4),
        };
        let mut quarters = first;
        loop {
            match plan(Checkpointed { quarters }) {
                Err(Error::Device(DeviceError::OutOfMemory { .. })) if quarters < last => quarters += 1,
                planned => {
                    if planned.is_ok() && quarters > first {
                        tracing::info!("activations of {quarters} quarters of the blocks are recomputed: not all fit the device's memory");
                    }
                    return planned;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needing(quarters: usize) -> impl FnMut(Checkpointed) -> Result<usize> {
        move |checkpointed| {
            if checkpointed.quarters < quarters {
                return Err(DeviceError::OutOfMemory { device: "test".into(), requested: 1 }.into());
            }
            Ok(checkpointed.of(24))
        }
    }

    #[test]
    fn as_few_blocks_as_fit() {
        assert_eq!(Checkpointing::Auto.plan(needing(0)).unwrap(), 0);
        assert_eq!(Checkpointing::Auto.plan(needing(3)).unwrap(), 18);
        assert_eq!(Checkpointing::All.plan(needing(0)).unwrap(), 24);
        assert!(Checkpointing::Off.plan(needing(1)).is_err());
        assert!(Checkpointing::Auto.plan(needing(5)).is_err());
        assert_eq!(Checkpointed { quarters: 1 }.of(38), 10);
    }
}
