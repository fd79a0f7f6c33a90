//! Checkpoints of a training: every number the next step depends on, so that a resumed run gives the same bits.
//!
//! A checkpoint is a folder with one safetensors file per network and `state.json`. It is written beside its place and
//! renamed when complete: a kill or a full disk never leaves a half one under a valid name. Arenas go from the device to the
//! disk and back a chunk at a time: the host never holds a whole one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::device::{Backend, Moment, Storage};
use crate::format::{Entry, SafetensorsFile, chunks, prepare_safetensors, write_atomically};
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

/// The arenas of one network, fetched while they are written.
fn arenas<'a, B: Backend>(b: &'a B, network: &'a Network<B>) -> Vec<Entry<'a>> {
    let stat = |name: String, arena: &'a B::Stat| Entry::fetched_f32(name, arena.len(), move |part| Ok(b.download_stat(arena.part(part))?));
    let mut arenas = vec![stat("master".into(), &network.master), stat("counters".into(), &network.counters)];
    arenas.extend(network.ema.iter().map(|ema| stat("ema".into(), ema)));
    for (name, moment) in [("moment1", network.moment1.as_ref()), ("moment2", Some(&network.moment2))] {
        match moment {
            Some(Moment::Full(values)) => arenas.push(stat(name.into(), values)),
            Some(Moment::Packed { codes, scales }) => {
                arenas.push(Entry::fetched_u8(name, codes.len(), move |part| Ok(b.download_bytes(codes.part(part))?)));
                arenas.push(stat(format!("{name}_scales"), scales));
            }
            None => (),
        }
    }
    arenas
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
        let file = prepare_safetensors(&BTreeMap::new(), arenas(b, network))?;
        write_atomically(&folder.join(format!("{name}.safetensors")), |out| file.write(out))?;
    }
    let path = folder.join(STATE);
    let text = serde_json::to_string_pretty(state).map_err(|e| Error::file(&path, e.to_string()))?;
    write_atomically(&path, |out| out.write_all(text.as_bytes()))
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
        restore(b, &folder.join(format!("{name}.safetensors")), network).map_err(advise)?;
    }
    Ok(state)
}

/// Says what helps against a damaged file.
fn advise(error: Error) -> Error {
    match error {
        Error::File { path, cause } => {
            Error::File { path, cause: format!("{cause}; delete this checkpoint to resume from the one before") }
        }
        other => other,
    }
}

/// The first line in which two settings differ.
fn difference(saved: &str, now: &str) -> String {
    let pair = saved.lines().zip(now.lines()).find(|(a, b)| a != b);
    pair.map_or_else(|| "one has more lines than the other".into(), |(a, b)| format!("saved `{}`, now `{}`", a.trim(), b.trim()))
}

/// Reads the arenas of one network into the device, a chunk at a time.
fn restore<B: Backend>(b: &B, path: &Path, network: &mut Network<B>) -> Result<()> {
    let file = SafetensorsFile::open(path)?;
    let stat = |name: &str, arena: &mut B::Stat| {
        file.expect_shape(name, &[arena.len()])?;
        for part in chunks(arena.len()) {
            let mut values = vec![0.0; part.len()];
            file.f32_into(name, part.start, &mut values)?;
            b.upload_stat(&values, arena.part_mut(part));
        }
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
                file.expect_shape(name, &[codes.len()])?;
                b.upload_bytes(file.u8(name)?, codes.all_mut());
                stat(&format!("{name}_scales"), scales)?;
            }
            None => (),
        }
    }
    network.refresh(b);
    Ok(())
}
