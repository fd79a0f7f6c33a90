//! The names under which programs save adapters: which module a tensor belongs to, and which part of its adapter it is.
//!
//! | written by | module | parts |
//! |---|---|---|
//! | diffusers | `transformer.transformer_blocks.0.attn.to_q` | `lora_A.weight`, `lora_B.weight` |
//! | PEFT | `base_model.model.transformer_blocks.0.attn.to_q` | the same |
//! | diffusers before PEFT | `transformer.transformer_blocks.0.attn.to_q`, `….attn.processor.to_q_lora` | `lora.down.weight`, `down.weight`, ... |
//! | sd-scripts | `lora_unet_joint_blocks_0_x_block_attn_qkv`: original names, dots as underscores | `lora_down.weight`, `lora_up.weight`, `alpha` |

use std::collections::BTreeMap;

use super::Target;

/// What a tensor is to its adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// `A` `[rank, inputs]`.
    A,
    /// `B` `[outputs, rank]`.
    B,
    /// A number: the product is multiplied by `alpha / rank`.
    Alpha,
}

const PARTS: [(&str, Part); 9] = [
    (".lora_A.weight", Part::A),
    (".lora_B.weight", Part::B),
    (".lora_A.default.weight", Part::A),
    (".lora_B.default.weight", Part::B),
    (".lora.down.weight", Part::A),
    (".lora.up.weight", Part::B),
    (".lora_down.weight", Part::A),
    (".lora_up.weight", Part::B),
    (".alpha", Part::Alpha),
];

/// Attention processors of old versions of diffusers: `processor.to_q_lora.down.weight`.
const PROCESSOR: &str = ".processor.";

const PREFIXES: [&str; 5] =
    ["base_model.model.transformer.", "base_model.model.", "transformer.", "model.diffusion_model.", "diffusion_model."];

/// Prefix of sd-scripts, whose modules have underscores for dots.
pub const FLAT_PREFIX: &str = "lora_unet_";

/// Takes a tensor's name apart into its module and its part; `None` for a name that belongs to no adapter.
pub fn parse(name: &str) -> Option<(String, Part)> {
    let name = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    if let Some(old) = name.contains(PROCESSOR).then(|| name.replace(PROCESSOR, ".")) {
        let (module, part) = [("_lora.down.weight", Part::A), ("_lora.up.weight", Part::B)]
            .iter()
            .find_map(|(suffix, part)| Some((old.strip_suffix(suffix)?.to_owned(), *part)))?;
        return Some((if module.ends_with("to_out") { format!("{module}.0") } else { module }, part));
    }
    PARTS.iter().find_map(|(suffix, part)| Some((name.strip_suffix(suffix)?.to_owned(), *part)))
}

/// Where the rows of a module's `B` go: targets with the first row of each, and whether the rows are in the network's order
/// instead of diffusers'.
#[derive(Clone, Debug)]
pub struct Places<'a> {
    /// First row of `B` for each target.
    pub parts: Vec<(usize, &'a Target)>,
    /// Whether rows are in the original order.
    pub original: bool,
}

/// The targets by every name their module may have.
#[derive(Debug)]
pub struct Modules<'a>(BTreeMap<String, Places<'a>>);

impl<'a> Modules<'a> {
    /// The names of `targets`.
    pub fn new(targets: &'a [Target]) -> Self {
        let mut modules = BTreeMap::new();
        for target in targets {
            let places = Places { parts: vec![(0, target)], original: false };
            modules.insert(target.module.replace('.', "_"), places.clone());
            modules.insert(target.module.clone(), places);
            let original = target.tensor.strip_suffix(".weight").unwrap_or(&target.tensor);
            for name in [original.to_owned(), original.replace('.', "_")] {
                // Names that both conventions share mean the same matrix, in the same order.
                let places = modules.entry(name).or_insert_with(|| Places { parts: Vec::new(), original: true });
                if places.original {
                    places.parts.push((target.row, target));
                }
            }
        }
        Self(modules)
    }

    /// Where a module's rows go.
    pub fn find(&self, module: &str) -> Option<&Places<'a>> {
        self.0.get(module.strip_prefix(FLAT_PREFIX).unwrap_or(module))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::names::tests::tiny;
    use crate::lora::targets;

    #[test]
    fn every_spelling_finds_its_matrix() {
        let targets = targets(&tiny(true, 1));
        let modules = Modules::new(&targets);
        let find = |name: &str| {
            let (module, part) = parse(name).unwrap();
            let places = modules.find(&module).unwrap_or_else(|| panic!("{name}: {module}"));
            (places.parts.iter().map(|(row, target)| (*row, target.module.as_str())).collect::<Vec<_>>(), part)
        };
        let q = "transformer_blocks.1.attn.to_q";
        for name in [
            "transformer.transformer_blocks.1.attn.to_q.lora_A.weight",
            "base_model.model.transformer_blocks.1.attn.to_q.lora_A.weight",
            "transformer_blocks.1.attn.to_q.lora_A.default.weight",
            "transformer.transformer_blocks.1.attn.to_q.lora.down.weight",
            "transformer.transformer_blocks.1.attn.processor.to_q_lora.down.weight",
            "lora_unet_transformer_blocks_1_attn_to_q.lora_down.weight",
        ] {
            assert_eq!(find(name), (vec![(0, q)], Part::A), "{name}");
        }
        let out = find("transformer.transformer_blocks.1.attn.processor.to_out_lora.up.weight");
        assert_eq!(out, (vec![(0, "transformer_blocks.1.attn.to_out.0")], Part::B));
        let fused = ["to_q", "to_k", "to_v"].map(|m| format!("transformer_blocks.1.attn.{m}"));
        for name in ["diffusion_model.joint_blocks.1.x_block.attn.qkv.lora_B.weight", "lora_unet_joint_blocks_1_x_block_attn_qkv.alpha"] {
            let (parts, _) = find(name);
            assert_eq!(parts, [0, 128, 256].into_iter().zip(fused.iter().map(String::as_str)).collect::<Vec<_>>(), "{name}");
        }
        assert_eq!(find("context_embedder.lora_B.weight"), (vec![(0, "context_embedder")], Part::B));
    }

    #[test]
    fn other_names_belong_to_no_adapter() {
        for name in ["transformer.proj_out.weight", "x.lora_magnitude_vector", "x.dora_scale", "x.lora_B.bias", "x.processor.y", ""] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
