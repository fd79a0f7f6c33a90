//! Branches as streams: a lane is a stream, and events order it behind what it follows. While a step is recorded the events
//! become edges of the graph: a stream that waits for an event of the recorded one is recorded too, and has to be waited
//! for before the recording ends, which the join does.
//!
//! Lanes are given out by depth, so that branches of the same depth that follow one another share a stream, and with it
//! scratch memory and workspace: the stream keeps them in order even where nothing else would.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError};

use crate::device::cuda::driver::{Address, LANES};

/// The streams and the branches that are open.
#[derive(Debug)]
pub struct Branches {
    streams: [Arc<CudaStream>; LANES],
    /// Recorded anew for every branch: who waits for an event waits for what it stood for at that time.
    event: CudaEvent,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    lane: usize,
    branches: Vec<Branch>,
    given_back: Vec<Address>,
}

#[derive(Debug)]
struct Branch {
    /// The lane it was begun from, and its own.
    from: usize,
    lane: usize,
    ended: bool,
}

impl Branches {
    /// Streams of the context.
    ///
    /// # Errors
    /// When the driver has no more of them.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        let streams = [context.new_stream()?, context.new_stream()?, context.new_stream()?];
        Ok(Self { streams, event: context.new_event(None)?, open: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lane of what is queued now.
    pub fn lane(&self) -> usize {
        self.state().lane
    }

    /// Its stream; the first one where no branch is open.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.streams[self.lane()]
    }

    /// Whether some branch is not joined yet.
    pub fn open(&self) -> bool {
        !self.state().branches.is_empty()
    }

    /// Takes memory that was given back while branches are open; `false` where none is.
    pub fn keep(&self, address: Address) -> bool {
        let mut state = self.state();
        let open = !state.branches.is_empty();
        if open {
            state.given_back.push(address);
        }
        open
    }

    /// What is queued in lane `later` from now on follows what lane `earlier` holds so far.
    fn order(&self, earlier: usize, later: usize) -> Result<(), DriverError> {
        self.event.record(&self.streams[earlier])?;
        self.streams[later].wait(&self.event)
    }

    /// Begins a branch and returns its lane; `None` where there is no lane left.
    pub fn begin(&self) -> Result<Option<usize>, DriverError> {
        let mut state = self.state();
        let (from, lane) = (state.lane, state.branches.len() + 1);
        if lane == LANES {
            return Ok(None);
        }
        self.order(from, lane)?;
        state.branches.push(Branch { from, lane, ended: false });
        state.lane = lane;
        Ok(Some(lane))
    }

    /// Goes back to the lane that the innermost branch was begun from; `false` where there is none.
    pub fn end(&self) -> bool {
        let mut state = self.state();
        let Some(branch) = state.branches.last_mut().filter(|branch| !branch.ended) else { return false };
        branch.ended = true;
        state.lane = state.branches.last().map_or(0, |branch| branch.from);
        true
    }

    /// Orders what follows behind the innermost branch. Returns the memory that was given back, when it was the last.
    pub fn join(&self) -> Result<Vec<Address>, DriverError> {
        let mut state = self.state();
        if let Some(branch) = state.branches.pop() {
            self.order(branch.lane, branch.from)?;
        }
        Ok(if state.branches.is_empty() { std::mem::take(&mut state.given_back) } else { Vec::new() })
    }
}
