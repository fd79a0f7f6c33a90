//! The settings that a checkpoint belongs to.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::config::Config;
use crate::train::checkpoint;

/// The settings a checkpoint depends on; threads and folders may change.
pub fn settings(config: &Config) -> Result<String> {
    Config { threads: 0, run_dir: PathBuf::new(), ..config.clone() }.resolved()
}

/// The same as the checkpoint in `folder` has them. A version of this program that had fewer keys may have written it: it
/// belongs to `config` if the keys that are new have their defaults there.
pub fn settings_in(folder: &Path, config: &Config) -> Result<String> {
    let saved = checkpoint::read_state(folder)?.settings;
    let now = settings(config)?;
    let filled = Config::parse(&saved).and_then(|config| settings(&config));
    Ok(if filled.is_ok_and(|filled| filled == now) { saved } else { now })
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
}
