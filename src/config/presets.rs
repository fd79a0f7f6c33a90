//! Named presets: TOML files that are part of the program.

use crate::{Error, Result};

/// A named set of values that is laid over the built-in defaults.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Its name, for `--preset` and for `preset = "..."` in a file.
    pub name: &'static str,
    /// What it is for, in one line.
    pub about: &'static str,
    /// Its TOML.
    pub text: &'static str,
}

/// All presets; the first is the default.
pub const PRESETS: [Preset; 9] = [
    Preset { name: "demo", about: "the demo: under five minutes on two cores", text: include_str!("presets/demo.toml") },
    Preset { name: "demo-quick", about: "the demo in about a minute, for a first look", text: include_str!("presets/demo-quick.toml") },
    Preset {
        name: "demo-edit",
        about: "a teacher and a student that edit the demo's pictures, without a GPU",
        text: include_str!("presets/demo-edit.toml"),
    },
    Preset {
        name: "demo-inpaint",
        about: "a teacher and a student that fill holes in the demo's pictures, without a GPU",
        text: include_str!("presets/demo-inpaint.toml"),
    },
    Preset {
        name: "emoji-small",
        about: "the second demo, emoji in colour at 32 pixels, for a processor",
        text: include_str!("presets/emoji-small.toml"),
    },
    Preset { name: "emoji", about: "emoji at 64 pixels, sized for ten minutes of a GPU", text: include_str!("presets/emoji.toml") },
    Preset { name: "sd3-medium", about: "Stable Diffusion 3 medium, 2.0 B parameters", text: include_str!("presets/sd3-medium.toml") },
    Preset {
        name: "sd3.5-medium",
        about: "Stable Diffusion 3.5 medium, 2.2 B parameters",
        text: include_str!("presets/sd3.5-medium.toml"),
    },
    Preset { name: "sd3.5-large", about: "Stable Diffusion 3.5 large, 8.1 B parameters", text: include_str!("presets/sd3.5-large.toml") },
];

/// The preset called `name`.
///
/// # Errors
/// When there is none; the message lists them.
pub fn preset(name: &str) -> Result<&'static Preset> {
    PRESETS.iter().find(|p| p.name == name).ok_or_else(|| {
        let names: Vec<_> = PRESETS.iter().map(|p| p.name).collect();
        Error::Config(format!("there is no preset `{name}`; the presets are {}", names.join(", ")))
    })
}
