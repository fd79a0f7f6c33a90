//! The conditioning's part of the patch embedding. The noisy latent and what conditions it are concatenated along their
//! channels (InstructPix2Pix, arXiv 2211.09800): `W [x; c] = W_x x + W_c c`. Files hold `W` as one tensor; arenas hold `W_x` and
//! `W_c` apart, so that what makes or reads tokens of `x` alone does not know of `c`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::Result;
use crate::model::ModelConfig;

use super::MmditLayout;

/// The whole patch embedding's weight in files, and `W_x` in arenas.
pub const PATCH_EMBEDDING: &str = "x_embedder.proj.weight";
/// `W_c` in arenas.
pub(super) const CONDITIONING: &str = "x_embedder.conditioning.weight";

/// A tensor as files hold it: name, shape, values.
pub type NamedTensor<'a> = (String, Vec<usize>, Cow<'a, [f32]>);

/// Shape of the patch embedding's weight in a file, `[h, C + K, p, p]`.
fn fused_shape(config: &ModelConfig) -> Vec<usize> {
    vec![config.hidden(), config.in_channels + config.conditioning_channels, config.patch, config.patch]
}

impl MmditLayout {
    /// Shapes of all tensors as files hold them, by name; the positional grid apart.
    pub fn file_shapes(&self, config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
        let mut shapes: BTreeMap<_, _> = self.arena.entries().iter().map(|entry| (entry.name.clone(), entry.shape.clone())).collect();
        if shapes.remove(CONDITIONING).is_some() {
            shapes.insert(PATCH_EMBEDDING.to_owned(), fused_shape(config));
        }
        shapes
    }

    /// Gathers the tensors of a file into one host arena. `find` gives shape and values of a name.
    ///
    /// # Errors
    /// Names every tensor that is missing or has another shape.
    pub fn gather<'a>(&self, config: &ModelConfig, find: impl Fn(&str) -> Option<(&'a [usize], &'a [f32])>) -> Result<Vec<f32>> {
        if self.conditioning_embedder.is_none() {
            return self.arena.gather(find);
        }
        let Some((_, fused)) = find(PATCH_EMBEDDING).filter(|(shape, _)| *shape == fused_shape(config)) else {
            return self.arena.gather(find);
        };
        let [(_, image_shape, image), (_, rest_shape, rest)] = split(config, fused);
        self.arena.gather(|name| match name {
            PATCH_EMBEDDING => Some((&image_shape[..], &image[..])),
            CONDITIONING => Some((&rest_shape[..], &rest[..])),
            _ => find(name),
        })
    }

    /// Takes a host arena apart into the tensors that files hold.
    pub fn scatter<'a>(&'a self, config: &ModelConfig, arena: &'a [f32]) -> Vec<NamedTensor<'a>> {
        let mut tensors: Vec<NamedTensor<'a>> =
            self.arena.scatter(arena).map(|(entry, values)| (entry.name.clone(), entry.shape.clone(), Cow::Borrowed(values))).collect();
        let place = |name: &str, tensors: &[NamedTensor<'_>]| tensors.iter().position(|tensor| tensor.0 == name);
        let Some(conditioning) = place(CONDITIONING, &tensors) else { return tensors };
        let (_, _, rest) = tensors.remove(conditioning);
        if let (Some(image), Some(layer)) = (place(PATCH_EMBEDDING, &tensors), &self.conditioning_embedder) {
            let rows = tensors[image].2.chunks_exact(self.x_embedder.inputs).zip(rest.chunks_exact(layer.inputs));
            let fused: Vec<f32> = rows.flat_map(|(image, rest)| image.iter().chain(rest)).copied().collect();
            tensors[image] = (PATCH_EMBEDDING.to_owned(), fused_shape(config), Cow::Owned(fused));
        }
        tensors
    }
}

/// The two parts that arenas hold of a file's patch embedding `[h, C + K, p, p]`: names, shapes, values.
pub fn split(config: &ModelConfig, fused: &[f32]) -> [(String, Vec<usize>, Vec<f32>); 2] {
    let width = |channels: usize| channels * config.patch * config.patch;
    let (image, row) = (width(config.in_channels), width(config.in_channels + config.conditioning_channels));
    let part = |name: &str, channels: usize, columns: std::ops::Range<usize>| {
        let values = fused.chunks_exact(row).flat_map(|row| &row[columns.clone()]).copied().collect();
        (name.to_owned(), vec![config.hidden(), channels, config.patch, config.patch], values)
    };
    [part(PATCH_EMBEDDING, config.in_channels, 0..image), part(CONDITIONING, config.conditioning_channels, image..row)]
}

/// Widens a patch embedding `[h, C + K, p, p]` by zeros to `[h, C + K', p, p]`: the wider network's output is the old one's to
/// the bit, whatever the new channels hold.
pub fn widened(weight: &[f32], old: &ModelConfig, new: &ModelConfig) -> Vec<f32> {
    let row = |config: &ModelConfig| (config.in_channels + config.conditioning_channels) * config.patch * config.patch;
    let (from, to) = (row(old), row(new));
    let mut wide = vec![0.0; weight.len() / from * to];
    wide.chunks_exact_mut(to).zip(weight.chunks_exact(from)).for_each(|(wide, row)| wide[..from].copy_from_slice(row));
    wide
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hidden 4, 2 channels of 1 x 1 patches.
    fn config(conditioning_channels: usize) -> ModelConfig {
        ModelConfig {
            depth: 1,
            heads: 1,
            head_dim: 4,
            in_channels: 2,
            patch: 1,
            context_dim: 3,
            pooled_dim: 3,
            pos_embed_max: 2,
            qk_norm: false,
            dual_attention_blocks: 0,
            conditioning_channels,
        }
    }

    #[test]
    fn both_parts_are_one_tensor_in_files() {
        let config = config(3);
        let layout = MmditLayout::new(&config);
        assert_eq!(layout.file_shapes(&config)[PATCH_EMBEDDING], [4, 5, 1, 1]);
        assert!(!layout.file_shapes(&config).contains_key(CONDITIONING));
        let arena: Vec<f32> = (0..layout.arena.len()).map(|i| i as f32).collect();
        let tensors = layout.scatter(&config, &arena);
        let (_, shape, fused) = tensors.iter().find(|tensor| tensor.0 == PATCH_EMBEDDING).unwrap();
        let (image, rest) = (layout.x_embedder.weight as f32, layout.conditioning_embedder.unwrap().weight as f32);
        assert_eq!(
            (shape.as_slice(), &fused[5..10]),
            (&[4, 5, 1, 1][..], &[image + 2.0, image + 3.0, rest + 3.0, rest + 4.0, rest + 5.0][..])
        );
        let find = |name: &str| tensors.iter().find(|tensor| tensor.0 == name).map(|(_, shape, values)| (&shape[..], &values[..]));
        let again = layout.gather(&config, find).unwrap();
        for entry in layout.arena.entries() {
            assert_eq!(again[entry.range()], arena[entry.range()], "{}", entry.name);
        }
        let error = layout.gather(&config, |name| find(name).filter(|_| name != PATCH_EMBEDDING)).unwrap_err().to_string();
        assert!(error.contains("`x_embedder.proj.weight` [4, 2, 1, 1] is missing"), "{error}");
    }

    #[test]
    fn widening_adds_zeros_behind_every_row() {
        let weight: Vec<f32> = (1..=8).map(|i| i as f32).collect();
        let wide = widened(&weight, &config(0), &config(2));
        assert_eq!(wide, [1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 5.0, 6.0, 0.0, 0.0, 7.0, 8.0, 0.0, 0.0]);
    }

    #[test]
    fn only_three_widths_have_a_meaning() {
        assert!([0, 2, 3].iter().all(|channels| config(*channels).validate().is_ok()));
        assert!(config(1).validate().unwrap_err().to_string().contains("model.conditioning_channels = 1 must be 0"));
    }
}
