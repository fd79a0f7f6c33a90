//! The small CNN that looks at the demo's pictures: six 3x3 convolutions with ReLU (BatchNorm folded in), the mean over
//! all positions as the features, one linear layer.
//!
//! Activations lie channel-last, so that a patch is three contiguous runs, and a convolution is one product
//! `weight [cout, 9 cin] * patches [9 cin, positions]`. Images run in parallel. Weights: `reference/train_classifier.py`.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::format::SafetensorsFile;
use crate::{Error, Result};

/// Shape of an image, `[C, H, W]`.
pub(crate) const INPUT: [usize; 3] = [1, 32, 32];
/// (inputs, outputs, stride) of the convolutions.
const CONVOLUTIONS: [(usize, usize, usize); 6] = [(1, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)];
const CLASSES: usize = 10;
const KERNEL: usize = 3;
/// Images that one thread takes through the network together: enough columns to keep a matrix product busy.
const CHUNK: usize = 8;

/// The classifier's weights.
#[derive(Clone, Debug)]
pub struct Classifier {
    convolutions: Vec<Convolution>,
    weight: Vec<f32>, // [classes, features]
    bias: Vec<f32>,   // [classes]
}

/// What the classifier says about a batch of images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Classification {
    /// Features, in which the Fréchet distance is measured, `[n, 128]`.
    pub features: Vec<f32>,
    /// Unnormalised log-probabilities, `[n, 10]`.
    pub logits: Vec<f32>,
}

impl Classification {
    /// The most probable class of each image.
    pub fn classes(&self) -> impl Iterator<Item = usize> {
        self.logits.chunks_exact(CLASSES).map(|row| (0..CLASSES).fold(0, |best, class| if row[class] > row[best] { class } else { best }))
    }
}

impl Classifier {
    /// Reads the weights: `conv{i}.weight` `[out, in, 3, 3]`, `conv{i}.bias`, `fc.weight` `[10, 128]`, `fc.bias`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn read(file: &SafetensorsFile) -> Result<Self> {
        let convolution = |(i, sizes)| Convolution::read(file, &format!("conv{i}"), sizes);
        let convolutions = CONVOLUTIONS.into_iter().enumerate().map(convolution).collect::<Result<Vec<_>>>()?;
        let features = CONVOLUTIONS[CONVOLUTIONS.len() - 1].1;
        file.expect_shape("fc.weight", &[CLASSES, features])?;
        file.expect_shape("fc.bias", &[CLASSES])?;
        Ok(Self { convolutions, weight: file.f32("fc.weight")?, bias: file.f32("fc.bias")? })
    }

    /// Width of the features.
    pub fn features(&self) -> usize {
        self.weight.len() / CLASSES
    }

    /// Classifies images, `[n, 1, 32, 32]` in [-1, 1].
    ///
    /// # Errors
    /// When `images` is not a whole number of images.
    pub fn classify(&self, images: &[f32]) -> Result<Classification> {
        let size: usize = INPUT.iter().product();
        if !images.len().is_multiple_of(size) {
            return Err(Error::Usage(format!("{} numbers are no whole number of {INPUT:?} images", images.len())));
        }
        let parts: Vec<_> = images.par_chunks(CHUNK * size).map(|chunk| self.classify_chunk(chunk, chunk.len() / size)).collect();
        let mut all = Classification::default();
        for part in parts {
            all.features.extend(part.features);
            all.logits.extend(part.logits);
        }
        Ok(all)
    }

    fn classify_chunk(&self, images: &[f32], n: usize) -> Classification {
        let mut side = INPUT[1];
        let mut x = images.to_vec(); // [n, side, side, channels]; with one channel the layouts agree
        for convolution in &self.convolutions {
            x = convolution.apply(&x, n, side);
            side = convolution.output_side(side);
        }
        let width = self.features();
        let mut out = Classification { features: vec![0.0; n * width], logits: vec![0.0; n * CLASSES] };
        let rows = x.chunks_exact(side * side * width).zip(out.features.chunks_exact_mut(width)).zip(out.logits.chunks_exact_mut(CLASSES));
        for ((positions, features), logits) in rows {
            for position in positions.chunks_exact(width) {
                features.iter_mut().zip(position).for_each(|(sum, value)| *sum += value);
            }
            features.iter_mut().for_each(|sum| *sum /= (side * side) as f32);
            for ((logit, weight), bias) in logits.iter_mut().zip(self.weight.chunks_exact(width)).zip(&self.bias) {
                *logit = bias + weight.iter().zip(&*features).map(|(w, f)| w * f).sum::<f32>();
            }
        }
        out
    }
}

/// A 3x3 convolution with zero padding of one, then ReLU.
#[derive(Clone, Debug)]
struct Convolution {
    inputs: usize,
    outputs: usize,
    stride: usize,
    weight: Vec<f32>, // [outputs, 3, 3, inputs]
    bias: Vec<f32>,   // [outputs]
}

impl Convolution {
    fn read(file: &SafetensorsFile, name: &str, (inputs, outputs, stride): (usize, usize, usize)) -> Result<Self> {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        file.expect_shape(&weight, &[outputs, inputs, KERNEL, KERNEL])?;
        file.expect_shape(&bias, &[outputs])?;
        let channel_first = file.f32(&weight)?; // [outputs, inputs, 3, 3]
        let taps = KERNEL * KERNEL;
        let channel_last = (0..channel_first.len()).map(|e| {
            let (out, tap, input) = (e / (taps * inputs), e / inputs % taps, e % inputs);
            channel_first[(out * inputs + input) * taps + tap]
        });
        Ok(Self { inputs, outputs, stride, weight: channel_last.collect(), bias: file.f32(&bias)? })
    }

    fn output_side(&self, side: usize) -> usize {
        side.div_ceil(self.stride)
    }

    /// `[n, side, side, inputs]` -> [n, side / stride, side / stride, outputs].
    fn apply(&self, x: &[f32], n: usize, side: usize) -> Vec<f32> {
        let depth = KERNEL * KERNEL * self.inputs;
        let positions = n * self.output_side(side).pow(2);
        let patches = self.patches(x, n, side);
        let mut y = vec![0.0; positions * self.outputs];
        matmul(
            MatMut::from_column_major_slice_mut(&mut y, self.outputs, positions),
            Accum::Replace,
            MatRef::from_row_major_slice(&self.weight, self.outputs, depth),
            MatRef::from_column_major_slice(&patches, depth, positions),
            1.0,
            Par::Seq,
        );
        for position in y.chunks_exact_mut(self.outputs) {
            position.iter_mut().zip(&self.bias).for_each(|(value, bias)| *value = (*value + bias).max(0.0));
        }
        y
    }

    /// The 3x3 surroundings of each output position, zero outside the image, `[n, out, out, 3, 3, inputs]`.
    fn patches(&self, x: &[f32], n: usize, side: usize) -> Vec<f32> {
        let (c, out) = (self.inputs, self.output_side(side));
        let row = KERNEL * c;
        let mut patches = vec![0.0; n * out * out * KERNEL * row];
        for (position, patch) in patches.chunks_exact_mut(KERNEL * row).enumerate() {
            let (image, oy, ox) = (position / (out * out), position / out % out, position % out);
            let (left, first) = ((ox * self.stride).saturating_sub(1), usize::from(ox == 0));
            let last = (side + 1 - ox * self.stride).min(KERNEL);
            for (ky, target) in patch.chunks_exact_mut(row).enumerate() {
                let Some(y) = (oy * self.stride + ky).checked_sub(1).filter(|y| *y < side) else { continue };
                let start = ((image * side + y) * side + left) * c;
                target[first * c..last * c].copy_from_slice(&x[start..start + (last - first) * c]);
            }
        }
        patches
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Evaluator;

    fn noise(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn a_convolution_is_its_definition() {
        for (side, stride, inputs, outputs) in [(5, 1, 3, 4), (6, 2, 2, 3), (1, 1, 1, 1), (7, 2, 1, 2)] {
            let convolution = Convolution { inputs, outputs, stride, weight: noise(outputs * 9 * inputs, 1), bias: noise(outputs, 2) };
            let (n, out) = (2, convolution.output_side(side));
            let x = noise(n * side * side * inputs, 3);
            let y = convolution.apply(&x, n, side);
            for (e, value) in y.iter().enumerate() {
                let (image, oy, ox, o) = (e / (out * out * outputs), e / (out * outputs) % out, e / outputs % out, e % outputs);
                let mut expected = convolution.bias[o];
                for tap in 0..9 {
                    let (y, x_) = ((oy * stride + tap / 3).wrapping_sub(1), (ox * stride + tap % 3).wrapping_sub(1));
                    for i in (0..inputs).filter(|_| y < side && x_ < side) {
                        expected += convolution.weight[(o * 9 + tap) * inputs + i] * x[((image * side + y) * side + x_) * inputs + i];
                    }
                }
                approx::assert_abs_diff_eq!(*value, expected.max(0.0), epsilon = 1e-5);
            }
        }
    }

    #[test]
    fn the_built_in_classifier_agrees_with_pytorch() {
        let golden = SafetensorsFile::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/classifier.safetensors")).unwrap();
        let images = crate::data::fashion_mnist::padded(golden.u8("in.images").unwrap());
        let found = Evaluator::demo().unwrap().classifier().classify(&images).unwrap();
        for (name, values) in [("features", &found.features), ("logits", &found.logits)] {
            let name = golden.names().iter().find(|other| other.ends_with(name)).unwrap();
            let expected = golden.f32(name).unwrap();
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            let error = norm(&mut values.iter().zip(&expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied());
            assert!(error < 1e-5, "{name}: relative error {error}");
        }
    }

    #[test]
    fn the_result_does_not_depend_on_the_batch() {
        let evaluator = Evaluator::demo().unwrap();
        let images = noise(11 * 1024, 5);
        let all = evaluator.classifier().classify(&images).unwrap();
        let one = evaluator.classifier().classify(&images[9 * 1024..10 * 1024]).unwrap();
        for (a, b) in one.features.iter().zip(&all.features[9 * 128..]) {
            approx::assert_relative_eq!(*a, *b, epsilon = 1e-5, max_relative = 1e-4);
        }
        assert!(evaluator.classifier().classify(&images[1..]).is_err());
        assert_eq!(evaluator.classifier().classify(&[]).unwrap(), Classification::default());
    }
}
