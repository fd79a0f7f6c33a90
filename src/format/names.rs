//! The parameters of an MMDiT under their original Stable Diffusion 3 names, with their shapes.
//!
//! The single table against which every imported file is checked.

use std::collections::BTreeMap;

use crate::model::{FREQUENCIES, MLP_RATIO, ModelConfig};

/// Chunks of a joint block's modulation: shift, scale and gate, for the attention and for the MLP.
const CHUNKS: usize = 6;
/// With a second attention, three more.
const DUAL_CHUNKS: usize = 9;
/// The last block's context, and the final layer, have shift and scale only.
const LAST_CHUNKS: usize = 2;

/// Every tensor of the network, the positional grid `pos_embed` included, by name.
///
/// ```
/// # use ladd_fast::{format::parameter_shapes, model::ModelConfig};
/// # let config = ModelConfig { depth: 1, heads: 2, head_dim: 8, in_channels: 4, patch: 2, context_dim: 5,
/// #     pooled_dim: 3, pos_embed_max: 6, qk_norm: false, dual_attention_blocks: 0 };
/// assert_eq!(parameter_shapes(&config)["x_embedder.proj.weight"], [16, 4, 2, 2]);
/// ```
pub fn parameter_shapes(config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
    let (h, patch, grid) = (config.hidden(), config.patch, config.pos_embed_max);
    let mut shapes = Shapes(BTreeMap::new());
    shapes.tensor("x_embedder.proj.weight", &[h, config.in_channels, patch, patch]);
    shapes.tensor("x_embedder.proj.bias", &[h]);
    shapes.tensor("pos_embed", &[1, grid * grid, h]);
    shapes.linear("t_embedder.mlp.0", h, FREQUENCIES);
    shapes.linear("t_embedder.mlp.2", h, h);
    shapes.linear("y_embedder.mlp.0", h, config.pooled_dim);
    shapes.linear("y_embedder.mlp.2", h, h);
    shapes.linear("context_embedder", h, config.context_dim);
    for block in 0..config.depth {
        let (dual, last) = (block < config.dual_attention_blocks, block + 1 == config.depth);
        shapes.stream(config, &format!("joint_blocks.{block}.x_block"), if dual { DUAL_CHUNKS } else { CHUNKS });
        shapes.stream(config, &format!("joint_blocks.{block}.context_block"), if last { LAST_CHUNKS } else { CHUNKS });
    }
    shapes.linear("final_layer.adaLN_modulation.1", LAST_CHUNKS * h, h);
    shapes.linear("final_layer.linear", patch * patch * config.in_channels, h);
    shapes.0
}

struct Shapes(BTreeMap<String, Vec<usize>>);

impl Shapes {
    fn tensor(&mut self, name: &str, shape: &[usize]) {
        self.0.insert(name.to_owned(), shape.to_vec());
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize) {
        self.tensor(&format!("{name}.weight"), &[outputs, inputs]);
        self.tensor(&format!("{name}.bias"), &[outputs]);
    }

    /// The image half or the text half of a joint block, told apart by the chunks of its modulation.
    fn stream(&mut self, config: &ModelConfig, name: &str, chunks: usize) {
        let (h, pre_only) = (config.hidden(), chunks == LAST_CHUNKS);
        self.linear(&format!("{name}.adaLN_modulation.1"), chunks * h, h);
        self.attention(config, &format!("{name}.attn"), pre_only);
        if chunks == DUAL_CHUNKS {
            self.attention(config, &format!("{name}.attn2"), false);
        }
        if !pre_only {
            self.linear(&format!("{name}.mlp.fc1"), MLP_RATIO * h, h);
            self.linear(&format!("{name}.mlp.fc2"), h, MLP_RATIO * h);
        }
    }

    fn attention(&mut self, config: &ModelConfig, name: &str, pre_only: bool) {
        let h = config.hidden();
        self.linear(&format!("{name}.qkv"), 3 * h, h);
        if config.qk_norm {
            self.tensor(&format!("{name}.ln_q.weight"), &[config.head_dim]);
            self.tensor(&format!("{name}.ln_k.weight"), &[config.head_dim]);
        }
        if !pre_only {
            self.linear(&format!("{name}.proj"), h, h);
        }
    }
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
        }
    }

    #[test]
    fn parameter_counts_are_those_of_the_published_models() {
        let count = |config: &ModelConfig| {
            parameter_shapes(config)
                .iter()
                .filter(|(name, _)| *name != "pos_embed")
                .map(|(_, shape)| shape.iter().product::<usize>())
                .sum::<usize>()
        };
        let medium = ModelConfig {
            depth: 24,
            heads: 24,
            head_dim: 64,
            in_channels: 16,
            patch: 2,
            context_dim: 4096,
            pooled_dim: 2048,
            pos_embed_max: 192,
            qk_norm: false,
            dual_attention_blocks: 0,
        };
        assert_eq!(count(&medium) / 10_000_000, 202, "{}", count(&medium));
        let medium35 = ModelConfig { qk_norm: true, dual_attention_blocks: 13, pos_embed_max: 384, ..medium.clone() };
        assert_eq!(count(&medium35) / 10_000_000, 224, "{}", count(&medium35));
        let large = ModelConfig { depth: 38, heads: 38, qk_norm: true, ..medium };
        assert_eq!(count(&large) / 10_000_000, 805, "{}", count(&large));
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
