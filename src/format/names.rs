//! The parameters of an MMDiT under their original Stable Diffusion 3 names, with their shapes.
//!
//! Taken from the model itself; every imported file is checked against it.

use std::collections::BTreeMap;

use crate::model::ModelConfig;
use crate::model::mmdit::{MmditLayout, POS_EMBED};

/// Every tensor of the network, the positional grid `pos_embed` included, by name.
///
/// ```
/// # use ladd_fast::{format::parameter_shapes, model::ModelConfig};
/// # let config = ModelConfig { depth: 1, heads: 2, head_dim: 8, in_channels: 4, patch: 2, context_dim: 5,
/// #     pooled_dim: 3, pos_embed_max: 6, qk_norm: false, dual_attention_blocks: 0,
/// #     conditioning_channels: 0 };
/// assert_eq!(parameter_shapes(&config)["x_embedder.proj.weight"], [16, 4, 2, 2]);
/// ```
pub fn parameter_shapes(config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = MmditLayout::new(config).file_shapes(config);
    shapes.insert(POS_EMBED.to_owned(), vec![1, config.pos_embed_max * config.pos_embed_max, config.hidden()]);
    shapes
}

/// Lists what differs between the tensors a file holds and those the model needs; empty when nothing does.
pub(crate) fn differences(needed: &BTreeMap<String, Vec<usize>>, found: &BTreeMap<String, Vec<usize>>) -> String {
    let missing: Vec<_> = needed.keys().filter(|name| !found.contains_key(*name)).cloned().collect();
    let extra: Vec<_> = found.keys().filter(|name| !needed.contains_key(*name)).cloned().collect();
    let misshapen: Vec<_> = needed
        .iter()
        .filter_map(|(name, shape)| {
            found.get(name).filter(|other| *other != shape).map(|other| format!("{name} {other:?} instead of {shape:?}"))
        })
        .collect();
    let kinds = [("missing", missing), ("not part of this model", extra), ("of the wrong shape", misshapen)];
    let sentences: Vec<_> = kinds.iter().filter(|(_, names)| !names.is_empty()).map(|(kind, names)| summary(kind, names)).collect();
    sentences.join("; ")
}

fn summary(kind: &str, names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    let rest = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    format!("{kind}: {shown}{rest}")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A tiny model; `qk_norm` and dual attention as asked for.
    pub fn tiny(qk_norm: bool, dual_attention_blocks: usize) -> ModelConfig {
        ModelConfig {
            depth: 3,
            heads: 2,
            head_dim: 64,
            in_channels: 4,
            patch: 2,
            context_dim: 12,
            pooled_dim: 10,
            pos_embed_max: 6,
            qk_norm,
            dual_attention_blocks,
            conditioning_channels: 0,
        }
    }

    #[test]
    fn the_last_block_has_no_text_output() {
        let shapes = parameter_shapes(&tiny(true, 1));
        assert_eq!(shapes["joint_blocks.2.context_block.adaLN_modulation.1.weight"], [256, 128]);
        assert_eq!(shapes["joint_blocks.0.x_block.adaLN_modulation.1.weight"], [9 * 128, 128]);
        assert!(!shapes.contains_key("joint_blocks.2.context_block.attn.proj.weight"));
        assert!(!shapes.contains_key("joint_blocks.2.context_block.mlp.fc1.weight"));
        assert!(shapes.contains_key("joint_blocks.0.x_block.attn2.ln_q.weight"));
        assert!(!shapes.contains_key("joint_blocks.1.x_block.attn2.ln_q.weight"));
    }

    #[test]
    fn differences_name_tensors_and_stay_short() {
        let needed = parameter_shapes(&tiny(true, 0));
        assert_eq!(differences(&needed, &needed), "");
        let mut found = parameter_shapes(&tiny(false, 0));
        found.insert("pos_embed".into(), vec![1]);
        found.insert("lora".into(), vec![1]);
        let text = differences(&needed, &found);
        assert!(text.contains("missing: joint_blocks.0.context_block.attn.ln_k.weight") && text.contains("and 8 more"), "{text}");
        assert!(text.contains("not part of this model: lora") && text.contains("pos_embed [1] instead of [1, 36, 128]"), "{text}");
    }
}
