//! Configuration files: TOML, presets, overrides.
