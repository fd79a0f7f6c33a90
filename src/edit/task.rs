//! What a network is for: pictures from prompts, from a picture and an instruction, or from a picture with a hole.

use serde::{Deserialize, Serialize};

use crate::model::ModelConfig;

/// What a network is trained to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Pictures from prompts.
    #[default]
    Generate,
    /// A picture changed as an instruction says.
    Edit,
    /// The painted part of a picture filled in.
    Inpaint,
}

impl Task {
    /// Channels that a network reads beside a noisy latent of `channels`.
    pub fn conditioning_channels(self, channels: usize) -> usize {
        match self {
            Self::Generate => 0,
            Self::Edit => channels,
            Self::Inpaint => channels + 1,
        }
    }

    /// What a network is for: what it reads tells.
    pub fn of(model: &ModelConfig) -> Self {
        match model.conditioning_channels {
            0 => Self::Generate,
            channels if channels == model.in_channels => Self::Edit,
            _ => Self::Inpaint,
        }
    }

    /// The name in configurations and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Edit => "edit",
            Self::Inpaint => "inpaint",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conditioning_tells_the_task() {
        for task in [Task::Generate, Task::Edit, Task::Inpaint] {
            let mut model = crate::config::Config::default().model;
            model.conditioning_channels = task.conditioning_channels(model.in_channels);
            assert_eq!(Task::of(&model), task);
            model.validate().unwrap();
            assert_eq!(serde_json::to_string(&task).unwrap(), format!("\"{}\"", task.name()));
        }
    }
}
