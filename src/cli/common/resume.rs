//! The settings that a checkpoint belongs to.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::config::Config;
use crate::train::checkpoint;

/// The settings a checkpoint depends on; threads and folders may change.
pub fn settings(config: &Config) -> Result<String> {
    Config { threads: 0, run_dir: PathBuf::new(), ..config.clone() }.resolved()
}

/// The same as the checkpoint in `folder` has them, if it belongs to `config`. A version of this program that had fewer keys may
/// have written it: those that are new must have their defaults. Files and folders may have been moved since.
pub fn settings_in(folder: &Path, config: &Config) -> Result<String> {
    let saved = checkpoint::read_state(folder)?.settings;
    let now = settings(config)?;
    let Ok(begun) = Config::parse(&saved) else { return Ok(now) };
    if settings(&begun)? == now {
        return Ok(saved);
    }
    let (mut from, mut to) = (begun, config.clone());
    let mut moved = Vec::new();
    for (was, is) in paths(&mut from).into_iter().zip(paths(&mut to)) {
        if was != is {
            moved.push(format!("{was} is now {is}"));
        }
        was.clear();
        is.clear();
    }
    if settings(&from)? != settings(&to)? {
        return Ok(now);
    }
    tracing::warn!("{}: the run goes on to the same bits if what lies there is the same", moved.join(", "));
    Ok(saved)
}

/// Names of files and folders that a run reads.
fn paths(config: &mut Config) -> Vec<&mut String> {
    let Config { teacher, data, encoders, synthesize, distill, .. } = config;
    vec![
        &mut teacher.checkpoint,
        &mut data.shards,
        &mut data.images,
        &mut encoders.path,
        &mut encoders.tokenizers,
        &mut encoders.cache,
        &mut synthesize.prompts,
        &mut distill.student,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::checkpoint::TrainingState;

    #[test]
    fn a_checkpoint_of_a_version_with_fewer_keys_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { seed: 7, threads: 3, ..Config::default() };
        let saved = |text: &str| {
            let state = TrainingState::new(1, 0.0, text.to_owned());
            std::fs::write(folder.path().join("state.json"), serde_json::to_string(&state).unwrap()).unwrap();
            settings_in(folder.path(), &config).unwrap()
        };
        let now = settings(&config).unwrap();
        assert!(now.contains("seed = 7") && now.contains("threads = 0"), "{now}");
        assert_eq!(saved(&now), now);
        let without = |key: &str| now.lines().filter(|line| !line.starts_with(key)).map(|line| format!("{line}\n")).collect::<String>();
        let older = without("gemm_algorithms");
        assert_ne!(older, now);
        assert_eq!(saved(&older), older, "keys that are new have their defaults");
        assert_eq!(saved(&without("seed")), now, "a key without its default");
        assert_eq!(saved(&now.replace("seed = 7", "seed = 8")), now, "another value");
        assert_eq!(saved(&format!("of_a_newer_version = 1\n{now}")), now, "an unknown key");
        assert_eq!(saved("no settings at all"), now);
    }

    #[test]
    fn files_may_move_and_nothing_else_may_change() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        let text = settings(&config).unwrap();
        let state = TrainingState::new(1, 0.0, text.clone());
        std::fs::write(folder.path().join("state.json"), serde_json::to_string(&state).unwrap()).unwrap();
        config.teacher.checkpoint = "elsewhere/teacher".into();
        config.data.shards = "elsewhere/latents".into();
        assert_eq!(settings_in(folder.path(), &config).unwrap(), text);
        config.distill.steps += 1;
        assert_eq!(settings_in(folder.path(), &config).unwrap(), settings(&config).unwrap());
    }
}
