//! The autoencoder's tensors in an original single file, named as latent diffusion's code names them, under diffusers' names.

use super::autoencoder::AutoencoderConfig;
use crate::format::parts::Part;

/// What the published file's tensors do not tell.
const SCALING: f64 = 1.5305;
const SHIFT: f64 = 0.0609;
const GROUPS: usize = 32;

/// Levels of the autoencoder whose original tensors are named `names`.
pub(super) fn levels<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    let level = |name: &str| name.strip_prefix("encoder.down.")?.split('.').next()?.parse::<usize>().ok();
    names.filter_map(level).max().map_or(0, |last| last.saturating_add(1))
}

/// diffusers' name of an original tensor; `None` where it is no part of the autoencoder.
pub(super) fn to_diffusers(name: &str, levels: usize) -> Option<String> {
    let (half, rest) = name.split_once('.')?;
    if half != "encoder" && half != "decoder" {
        return None;
    }
    let parts: Vec<&str> = rest.split('.').collect();
    let inner = match *parts.as_slice() {
        [name @ ("conv_in" | "conv_out"), part] => format!("{name}.{part}"),
        ["norm_out", part] => format!("conv_norm_out.{part}"),
        ["mid", block @ ("block_1" | "block_2"), layer, part] => {
            format!("mid_block.resnets.{}.{}.{part}", usize::from(block == "block_2"), residual(layer))
        }
        ["mid", "attn_1", layer, part] => format!("mid_block.attentions.0.{}.{part}", attention(layer)?),
        ["down", level, "block", block, layer, part] => format!("down_blocks.{level}.resnets.{block}.{}.{part}", residual(layer)),
        ["down", level, "downsample", "conv", part] => format!("down_blocks.{level}.downsamplers.0.conv.{part}"),
        ["up", level, "block", block, layer, part] => {
            format!("up_blocks.{}.resnets.{block}.{}.{part}", mirrored(level, levels)?, residual(layer))
        }
        ["up", level, "upsample", "conv", part] => format!("up_blocks.{}.upsamplers.0.conv.{part}", mirrored(level, levels)?),
        _ => return None,
    };
    Some(format!("{half}.{inner}"))
}

/// The original counts a decoder's levels from the finest, diffusers from the coarsest.
fn mirrored(level: &str, levels: usize) -> Option<usize> {
    levels.checked_sub(1)?.checked_sub(level.parse().ok()?)
}

fn residual(layer: &str) -> &str {
    if layer == "nin_shortcut" { "conv_shortcut" } else { layer }
}

fn attention(layer: &str) -> Option<&'static str> {
    match layer {
        "norm" => Some("group_norm"),
        "q" => Some("to_q"),
        "k" => Some("to_k"),
        "v" => Some("to_v"),
        "proj_out" => Some("to_out.0"),
        _ => None,
    }
}

/// The configuration, read off the shapes. Scaling, shift and groups are those of Stable Diffusion 3.
pub(super) fn detect(part: &Part, levels: usize) -> Option<AutoencoderConfig> {
    let outputs = |name: String| part.shape(&name).and_then(|shape| shape.first().copied());
    let channels = (0..levels).map(|i| outputs(format!("encoder.down_blocks.{i}.resnets.0.conv1.weight"))).collect::<Option<Vec<_>>>()?;
    let layers = (0..).take_while(|i| outputs(format!("encoder.down_blocks.0.resnets.{i}.conv1.weight")).is_some()).count();
    let inputs = |name: &str| part.shape(name).and_then(|shape| shape.get(1).copied());
    (levels > 0).then_some(AutoencoderConfig {
        in_channels: inputs("encoder.conv_in.weight")?,
        latent_channels: inputs("decoder.conv_in.weight")?,
        norm_num_groups: channels.iter().fold(GROUPS, |groups, c| if c.is_multiple_of(groups) { groups } else { gcd(groups, *c) }),
        block_out_channels: channels,
        layers_per_block: layers,
        scaling_factor: SCALING,
        shift_factor: Some(SHIFT),
        use_quant_conv: false,
        use_post_quant_conv: false,
    })
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_diffusers() {
        let pairs = [
            ("encoder.conv_in.weight", "encoder.conv_in.weight"),
            ("encoder.down.1.block.0.nin_shortcut.bias", "encoder.down_blocks.1.resnets.0.conv_shortcut.bias"),
            ("encoder.down.2.downsample.conv.weight", "encoder.down_blocks.2.downsamplers.0.conv.weight"),
            ("decoder.up.0.block.2.norm1.weight", "decoder.up_blocks.3.resnets.2.norm1.weight"),
            ("decoder.up.3.upsample.conv.bias", "decoder.up_blocks.0.upsamplers.0.conv.bias"),
            ("decoder.mid.block_2.conv2.weight", "decoder.mid_block.resnets.1.conv2.weight"),
            ("decoder.mid.attn_1.proj_out.weight", "decoder.mid_block.attentions.0.to_out.0.weight"),
            ("decoder.norm_out.bias", "decoder.conv_norm_out.bias"),
        ];
        for (original, diffusers) in pairs {
            assert_eq!(to_diffusers(original, 4).as_deref(), Some(diffusers));
        }
        for other in ["quant_conv.weight", "loss.logvar", "decoder.up.9.block.0.conv1.weight", "encoder.mid.attn_1.x.weight", "x"] {
            assert_eq!(to_diffusers(other, 4), None, "{other}");
        }
        assert_eq!(levels(["encoder.down.3.block.0.x", "encoder.down.0.block.0.x", "y"].into_iter()), 4);
    }
}
