//! Networks that read a source, or a masked latent and its mask, beside the noisy latent.

use ladd_fast::device::Backend;
use ladd_fast::model::mmdit::widened;
use ladd_fast::model::{ModelConfig, Shape};

use crate::golden::{Tolerance, close};
use crate::lab::same_bits;
use crate::operations::on_every_backend;
use crate::rig::{HostInputs, Rig, data};

on_every_backend!(chains: a_widened_network_begins_as_the_old_one, every_part_of_the_conditioning_counts);

const EMBEDDER: &str = "x_embedder.proj.weight";

fn small() -> ModelConfig {
    ModelConfig {
        depth: 1,
        heads: 1,
        head_dim: 64,
        in_channels: 4,
        patch: 2,
        context_dim: 20,
        pooled_dim: 12,
        pos_embed_max: 8,
        qk_norm: true,
        dual_attention_blocks: 0,
        conditioning_channels: 0,
    }
}

/// Whatever the conditioning holds, the velocity is the base network's, to the bit; and so is that of the network that a file of
/// the widened tensors gives.
fn a_widened_network_begins_as_the_old_one<B: Backend>(b: &B, _: Tolerance) {
    let base = small();
    let shape = Shape { batch: 2, height: 4, width: 6, text: 3 };
    let rig = Rig::new(b, &base, 7);
    let mut inputs = HostInputs::random(&base, shape, 8);
    let expected = rig.infer(&inputs);
    for conditioning_channels in [base.in_channels, base.in_channels + 1] {
        let config = ModelConfig { conditioning_channels, ..base.clone() };
        inputs.conditioning = HostInputs::random(&config, shape, 9).conditioning;
        let mut wide = Rig::new(b, &config, 7);
        let tensors = rig.model.layout().scatter(&base, &rig.weights);
        let tensors: Vec<_> = tensors
            .into_iter()
            .map(|(name, mut shape, values)| {
                let values = if name == EMBEDDER { widened(&values, &base, &config) } else { values.into_owned() };
                if name == EMBEDDER {
                    shape[1] = config.in_channels + config.conditioning_channels;
                }
                (name, shape, values)
            })
            .collect();
        let find = |name: &str| tensors.iter().find(|tensor| tensor.0 == name).map(|(_, shape, values)| (&shape[..], &values[..]));
        wide.weights = wide.model.layout().gather(&config, find).unwrap();
        wide.params = data(b, &wide.weights);
        same_bits("velocity", &wide.infer(&inputs), &expected);
    }
}

/// A change of any channel of the conditioning changes the velocity, of its own sample alone.
fn every_part_of_the_conditioning_counts<B: Backend>(b: &B, tolerance: Tolerance) {
    let base = small();
    let config = ModelConfig { conditioning_channels: base.in_channels + 1, ..base };
    let shape = Shape { batch: 2, height: 4, width: 6, text: 3 };
    let rig = Rig::new(b, &config, 7);
    let inputs = HostInputs::random(&config, shape, 8);
    let before = rig.infer(&inputs);
    let (plane, half) = (shape.height * shape.width, before.len() / 2);
    for channel in 0..config.conditioning_channels {
        let mut changed = inputs.clone();
        let conditioning = changed.conditioning.as_mut().unwrap();
        conditioning[channel * plane..(channel + 1) * plane].iter_mut().for_each(|value| *value += 1.0);
        let after = rig.infer(&changed);
        assert!(after[..half] != before[..half], "channel {channel}");
        close("the other sample", &after[half..], &before[half..], tolerance.relative());
    }
}
