//! Checkpoints of a training: every number the next step depends on, so that a resumed run gives the same bits.
//!
//! A checkpoint is a folder with one safetensors file per network and `state.json`. It is written beside its place and
//! renamed when complete: a kill or a full disk never leaves a half one under a valid name.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::device::{Backend, Moment, Storage};
use crate::train::Network;
use crate::{Error, Result};

const STATE: &str = "state.json";
const VERSION: u32 = 1;

/// What `state.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingState {
    /// Version of the format.
    pub version: u32,
    /// Steps done.
    pub step: u32,
    /// Seconds of training so far.
    pub seconds: f64,
    /// The settings the state depends on, as text: a checkpoint of other settings is refused.
    pub settings: String,
}

impl TrainingState {
    /// The state behind `step` steps.
    pub fn new(step: u32, seconds: f64, settings: String) -> Self {
        Self { version: VERSION, step, seconds, settings }
    }
}

/// An arena on the host.
struct Arena {
    name: String,
    dtype: Dtype,
    bytes: Vec<u8>,
}

impl Arena {
    fn of<B: Backend>(b: &B, name: impl Into<String>, values: &B::Stat) -> Result<Self> {
        let values = b.download_stat(values.all())?;
        Ok(Self { name: name.into(), dtype: Dtype::F32, bytes: bytemuck::cast_slice(&values).to_vec() })
    }
}

/// The arenas of one network.
fn arenas<B: Backend>(b: &B, network: &Network<B>) -> Result<Vec<Arena>> {
    let mut arenas = vec![Arena::of(b, "master", &network.master)?, Arena::of(b, "counters", &network.counters)?];
    if let Some(ema) = &network.ema {
        arenas.push(Arena::of(b, "ema", ema)?);
    }
    for (name, moment) in [("moment1", network.moment1.as_ref()), ("moment2", Some(&network.moment2))] {
        match moment {
            Some(Moment::Full(values)) => arenas.push(Arena::of(b, name, values)?),
            Some(Moment::Packed { codes, scales }) => {
                arenas.push(Arena { name: name.into(), dtype: Dtype::U8, bytes: b.download_bytes(codes.all())? });
                arenas.push(Arena::of(b, format!("{name}_scales"), scales)?);
            }
            None => (),
        }
    }
    Ok(arenas)
}

/// Writes a checkpoint to the folder `to`, which must not exist yet.
///
/// # Errors
/// When the folder cannot be written; what was written so far is removed.
pub fn save<B: Backend>(b: &B, to: &Path, state: &TrainingState, networks: &[(&str, &Network<B>)]) -> Result<()> {
    let mut name = to.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    let partial = to.with_file_name(name);
    let outcome = write(b, &partial, state, networks).and_then(|()| fs::rename(&partial, to).map_err(|e| Error::io("rename", &partial, e)));
    if outcome.is_err() {
        let _ = fs::remove_dir_all(&partial); // the first error is the one to report
    }
    outcome
}

fn write<B: Backend>(b: &B, folder: &Path, state: &TrainingState, networks: &[(&str, &Network<B>)]) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(|e| Error::io("remove", folder, e))?;
    }
    fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    for (name, network) in networks {
        let arenas = arenas(b, network)?;
        let views = arenas.iter().map(|Arena { name, dtype, bytes }| {
            let view = TensorView::new(*dtype, vec![bytes.len() * 8 / dtype.bitsize()], bytes);
            view.map(|view| (name, view)).map_err(|e| Error::file(folder, e.to_string()))
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        let path = folder.join(format!("{name}.safetensors"));
        safetensors::serialize_to_file(views, None, &path).map_err(|e| match e {
            safetensors::SafeTensorError::IoError(e) => Error::io("write", &path, e),
            other => Error::file(&path, other.to_string()),
        })?;
        sync(&path)?;
    }
    let path = folder.join(STATE);
    let text = serde_json::to_string_pretty(state).map_err(|e| Error::file(&path, e.to_string()))?;
    fs::write(&path, text).map_err(|e| Error::io("write", &path, e))?;
    sync(&path)
}

fn sync(path: &Path) -> Result<()> {
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(|e| Error::io("write", path, e))
}

/// Reads the state of a checkpoint without its weights.
///
/// # Errors
/// When it is missing, damaged or of another version.
pub fn read_state(folder: &Path) -> Result<TrainingState> {
    let path = folder.join(STATE);
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let state: TrainingState = serde_json::from_str(&text)
        .map_err(|e| Error::file(&path, format!("not a checkpoint state ({e}); delete this checkpoint to resume from the one before")))?;
    if state.version != VERSION {
        return Err(Error::file(&path, format!("checkpoint version {}, this program reads version {VERSION}", state.version)));
    }
    Ok(state)
}

/// Restores networks from a checkpoint. `settings` must be those it was saved with.
///
/// # Errors
/// When a file is missing or damaged, or belongs to other settings.
pub fn load<B: Backend>(b: &B, folder: &Path, settings: &str, networks: &mut [(&str, &mut Network<B>)]) -> Result<TrainingState> {
    let state = read_state(folder)?;
    if state.settings != settings {
        return Err(Error::file(
            folder.join(STATE),
            format!(
                "this checkpoint belongs to other settings; resume with the run folder's own config.toml. First difference: {}",
                difference(&state.settings, settings)
            ),
        ));
    }
    for (name, network) in networks {
        let path = folder.join(format!("{name}.safetensors"));
        restore(b, &path, network)?;
    }
    Ok(state)
}

/// The first line in which two settings differ.
fn difference(saved: &str, now: &str) -> String {
    let pair = saved.lines().zip(now.lines()).find(|(a, b)| a != b);
    pair.map_or_else(|| "one has more lines than the other".into(), |(a, b)| format!("saved `{}`, now `{}`", a.trim(), b.trim()))
}

fn restore<B: Backend>(b: &B, path: &PathBuf, network: &mut Network<B>) -> Result<()> {
    let damaged = |what: String| Error::file(path, format!("{what}; delete this checkpoint to resume from the one before"));
    let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| damaged(format!("damaged checkpoint ({e})")))?;
    let take = |name: &str, dtype: Dtype, len: usize| {
        let view = tensors.tensor(name).map_err(|_| damaged(format!("`{name}` is missing")))?;
        if view.dtype() != dtype || view.shape() != [len] {
            return Err(damaged(format!("`{name}` holds {:?} of {:?} instead of {len} of {dtype:?}", view.shape(), view.dtype())));
        }
        Ok(view.data().to_vec())
    };
    let stat = |name: &str, target: &mut B::Stat| {
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(&take(name, Dtype::F32, target.len())?);
        b.upload_stat(&values, target.all_mut());
        Ok::<_, Error>(())
    };
    stat("master", &mut network.master)?;
    stat("counters", &mut network.counters)?;
    if let Some(ema) = &mut network.ema {
        stat("ema", ema)?;
    }
    for (name, moment) in [("moment1", network.moment1.as_mut()), ("moment2", Some(&mut network.moment2))] {
        match moment {
            Some(Moment::Full(values)) => stat(name, values)?,
            Some(Moment::Packed { codes, scales }) => {
                b.upload_bytes(&take(name, Dtype::U8, codes.len())?, codes.all_mut());
                stat(&format!("{name}_scales"), scales)?;
            }
            None => (),
        }
    }
    network.refresh(b);
    Ok(())
}
