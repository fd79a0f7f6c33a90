//! A frozen network whose blocks' products run in FP8: the fused projections, the attentions' output projections and both
//! layers of the MLPs. Weights are quantised once, activations before each product. Only the forward knows of it: the
//! backward multiplies by the weights in the compute type, at the activations that this forward kept.

use std::collections::HashMap;
use std::sync::Arc;

use crate::device::{Backend, DeviceError, Linear, QuantizeShape, Quantized, Storage, View};
use crate::model::{MLP_RATIO, Mmdit};

use super::activations::{Activations, Dims, Keep, Plan};
use super::layout::{AttentionLayout, BlockLayout, StreamLayout};

/// Codes and scales of a layer begin at multiples of this, so that they can be read 16 bytes at a time.
const ALIGNMENT: usize = 64;

/// The quantised weights of a network's blocks, a scale for each output channel.
#[derive(Debug)]
pub struct Fp8Weights<B: Backend> {
    codes: B::Bytes,
    scales: B::Stat,
    /// By the place of a layer's weight in the arena.
    places: HashMap<usize, Place>,
    blocks: usize,
}

/// Where codes and scales of a layer begin.
#[derive(Clone, Copy, Debug)]
struct Place {
    codes: usize,
    scales: usize,
}

/// What products in FP8 need beside what every pass has.
#[derive(Debug)]
pub(super) struct Fp8<B: Backend> {
    weights: Arc<Fp8Weights<B>>,
    /// Left operands of the image's and the text's product in progress: these streams do not wait for each other.
    operands: [Operand<B>; 2],
}

/// A quantised left operand.
#[derive(Debug)]
struct Operand<B: Backend> {
    codes: B::Bytes,
    scales: B::Stat,
}

impl<B: Backend> Operand<B> {
    fn new(b: &B, rows: usize, width: usize) -> Result<Self, DeviceError> {
        Ok(Self { codes: b.alloc_bytes(rows * width)?, scales: b.alloc_stat(rows)? })
    }
}

fn attention_layers(layout: &AttentionLayout) -> impl Iterator<Item = &Linear> {
    [&layout.qkv].into_iter().chain(&layout.proj)
}

fn stream_layers(layout: &StreamLayout) -> impl Iterator<Item = &Linear> {
    let attn2 = layout.attn2.iter().flat_map(attention_layers);
    attention_layers(&layout.attn).chain(attn2).chain(layout.mlp.iter().flat_map(|(fc1, fc2)| [fc1, fc2]))
}

/// All layers that are quantised, each with whether it is the text stream's.
fn layers(blocks: &[BlockLayout]) -> impl Iterator<Item = (&Linear, bool)> {
    let stream = |stream, text| stream_layers(stream).map(move |layer| (layer, text));
    blocks.iter().flat_map(move |block| stream(&block.image, false).chain(stream(&block.text, true)))
}

impl<B: Backend> Mmdit<B> {
    /// Quantises the weights of the first `blocks` blocks.
    ///
    /// # Errors
    /// When a width is no multiple of [`FP8_GRANULE`](crate::device::FP8_GRANULE), the device has no products in FP8, or its
    /// memory is exhausted.
    pub fn quantize(&self, b: &B, params: &B::Data, blocks: usize) -> Result<Fp8Weights<B>, DeviceError> {
        self.check_fp8(b, blocks)?;
        let mut places = HashMap::new();
        let (mut codes, mut scales) = (0_usize, 0_usize);
        for (layer, _) in layers(&self.layout.blocks[..blocks]) {
            places.insert(layer.weight, Place { codes, scales });
            codes = (codes + layer.inputs * layer.outputs).next_multiple_of(ALIGNMENT);
            scales = (scales + layer.outputs).next_multiple_of(ALIGNMENT);
        }
        let (mut codes, mut scales) = (b.alloc_bytes(codes)?, b.alloc_stat(scales)?);
        for (layer, _) in layers(&self.layout.blocks[..blocks]) {
            let Place { codes: first, scales: first_scale } = places[&layer.weight];
            let len = layer.inputs * layer.outputs;
            let shape = QuantizeShape { rows: layer.outputs, width: layer.inputs, gelu: false };
            let to = (codes.part_mut(first..first + len), scales.part_mut(first_scale..first_scale + layer.outputs));
            b.quantize_rows(&shape, params.part(layer.weight..layer.weight + len), to.0, to.1);
        }
        Ok(Fp8Weights { codes, scales, places, blocks })
    }

    /// Whether the device can run the products of the first `blocks` blocks in FP8, before anything is made for them.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize), its memory apart.
    pub fn check_fp8(&self, b: &B, blocks: usize) -> Result<(), DeviceError> {
        /// Any number of rows; the real ones are checked where a pass is planned.
        const ROWS: usize = 1024;
        layers(&self.layout.blocks[..blocks]).try_for_each(|(layer, _)| b.prepare_linear_fp8(layer, ROWS))
    }

    /// Plans a forward pass whose blocks multiply in FP8, with no gradients of weights to come.
    ///
    /// # Errors
    /// As [`activations`](Self::activations), and when the device has no product in FP8 of this size.
    ///
    /// # Panics
    /// When the plan keeps operands of weight gradients, or runs more blocks than were quantised.
    pub fn activations_fp8(&self, b: &B, plan: Plan, weights: &Arc<Fp8Weights<B>>) -> crate::Result<Activations<B>> {
        assert!(plan.keep != Keep::Everything, "a network in training multiplies in the compute type");
        assert!(plan.blocks <= weights.blocks, "{} blocks are quantised, {} are planned", weights.blocks, plan.blocks);
        self.check_plan(&plan)?;
        self.prepare_fp8(b, &plan)?;
        let d = Dims::new(&self.config, &self.layout, &plan);
        let operand = |tokens: usize| Operand::new(b, plan.shape.batch * tokens, MLP_RATIO * d.hidden);
        let room = Fp8 { weights: weights.clone(), operands: [operand(d.image)?, operand(d.text)?] };
        Ok(Activations::new(b, &self.config, &self.layout, plan, Some(room))?)
    }

    /// Chooses how the products of a plan are computed. A pass over fewer samples than its activations were planned for has
    /// other products: they are chosen when it runs, or here.
    ///
    /// # Errors
    /// When the device has no product in FP8 of this size.
    pub fn prepare_fp8(&self, b: &B, plan: &Plan) -> Result<(), DeviceError> {
        let d = Dims::new(&self.config, &self.layout, plan);
        let rows = |text: bool| plan.shape.batch * if text { d.text } else { d.image };
        layers(&self.layout.blocks[..plan.blocks]).try_for_each(|(layer, text)| b.prepare_linear_fp8(layer, rows(text)))
    }
}

/// What the products of one stream work with.
#[derive(Debug)]
pub(super) struct StreamFp8<'a, B: Backend> {
    weights: &'a Fp8Weights<B>,
    operand: &'a mut Operand<B>,
}

impl<B: Backend> Fp8<B> {
    /// The image's and the text's.
    pub fn streams(&mut self) -> [StreamFp8<'_, B>; 2] {
        let Self { weights, operands } = self;
        operands.each_mut().map(|operand| StreamFp8 { weights, operand })
    }
}

impl<B: Backend> StreamFp8<'_, B> {
    /// `y = f(x) W^T + b`, `f` GELU or nothing: quantises x, then multiplies.
    pub fn linear(&mut self, b: &B, params: &B::Data, layer: &Linear, rows: usize, x: View<'_, B::Data>, gelu: bool, y: &mut B::Data) {
        let Self { weights, operand } = self;
        let Place { codes: first, scales: first_scale } = weights.places[&layer.weight];
        let Operand { codes, scales } = &mut **operand;
        let len = rows * layer.inputs;
        let shape = QuantizeShape { rows, width: layer.inputs, gelu };
        b.quantize_rows(&shape, x, codes.part_mut(0..len), scales.part_mut(0..rows));
        let weight = Quantized {
            codes: weights.codes.part(first..first + layer.inputs * layer.outputs),
            scales: weights.scales.part(first_scale..first_scale + layer.outputs),
        };
        let x = Quantized { codes: codes.part(0..len), scales: scales.part(0..rows) };
        b.linear_fp8(params, layer, rows, x, weight, y.all_mut());
    }
}
