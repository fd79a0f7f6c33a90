//! Ctrl-C and SIGTERM: the first asks the command to stop at the next point from which it can continue, the second ends
//! the process at once.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{Outcome, Stop, output};
use crate::{Error, Result};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Installs the handler.
pub fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        output::note("stopping at the next safe point; press Ctrl-C again to stop at once");
    })
    .map_err(|e| Error::Usage(format!("cannot handle Ctrl-C: {e}")))
}

/// Whether the user asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// Ends the command if the user asked for it.
pub fn check() -> Outcome {
    if requested() { Err(Stop::Interrupted) } else { Ok(()) }
}
