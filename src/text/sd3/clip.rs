//! CLIP's text transformer (Radford et al., arXiv 2103.00020) with the projection of its pooled output. Checked against
//! transformers' `CLIPTextModelWithProjection`; candle's own has neither CLIP-G's erf GELU nor a projection.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module, VarBuilder, embedding, layer_norm, linear, linear_no_bias, ops};
use serde::Deserialize;

/// What a configuration says that marks the end of a prompt wrongly: the published CLIP-L says 2, and means the largest id.
const LEGACY_END: u32 = 2;

/// `config.json` of a CLIP text encoder.
#[derive(Clone, Debug, Deserialize)]
pub struct ClipConfig {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of a token.
    pub hidden_size: usize,
    /// Width within the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of a layer.
    pub num_attention_heads: usize,
    /// Tokens of a prompt, padding included.
    pub max_position_embeddings: usize,
    /// Activation of the MLP.
    pub hidden_act: Activation,
    /// Width of the pooled output.
    pub projection_dim: usize,
    /// Added to the variance of layer norms.
    #[serde(default = "default_eps")]
    pub layer_norm_eps: f64,
    /// The token that ends a prompt.
    pub eos_token_id: u32,
}

fn default_eps() -> f64 {
    1e-5
}

/// Activations of CLIP's MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x sigmoid(1.702 x)`: CLIP-L.
    QuickGelu,
    /// With the error function: CLIP-G.
    Gelu,
}

impl ClipConfig {
    /// CLIP-L as Stable Diffusion 3 uses it.
    pub fn clip_l() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            projection_dim: 768,
            layer_norm_eps: default_eps(),
            eos_token_id: 49407,
        }
    }

    /// CLIP-G (OpenCLIP bigG) as Stable Diffusion 3 uses it.
    pub fn clip_g() -> Self {
        Self {
            hidden_size: 1280,
            intermediate_size: 5120,
            num_hidden_layers: 32,
            num_attention_heads: 20,
            hidden_act: Activation::Gelu,
            projection_dim: 1280,
            ..Self::clip_l()
        }
    }
}

/// A CLIP text encoder.
#[derive(Debug)]
pub struct Clip {
    config: ClipConfig,
    tokens: Embedding,
    positions: Tensor, // [max_position_embeddings, hidden]
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    projection: Linear,
}

#[derive(Debug)]
struct Layer {
    norm1: LayerNorm,
    qkv: [Linear; 3],
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Clip {
    /// Loads the weights, named as transformers names them.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn new(weights: VarBuilder<'_>, config: &ClipConfig) -> Result<Self> {
        let (h, text) = (config.hidden_size, weights.pp("text_model"));
        let positions = text.pp("embeddings.position_embedding").get((config.max_position_embeddings, h), "weight")?;
        let layers = (0..config.num_hidden_layers).map(|i| Layer::new(text.pp(format!("encoder.layers.{i}")), config));
        Ok(Self {
            tokens: embedding(config.vocab_size, h, text.pp("embeddings.token_embedding"))?,
            positions,
            layers: layers.collect::<Result<_>>()?,
            final_norm: layer_norm(h, config.layer_norm_eps, text.pp("final_layer_norm"))?,
            projection: linear_no_bias(h, config.projection_dim, weights.pp("text_projection"))?,
            config: config.clone(),
        })
    }

    /// Width of a token.
    pub fn width(&self) -> usize {
        self.config.hidden_size
    }

    /// Width of the pooled output.
    pub fn pooled_width(&self) -> usize {
        self.config.projection_dim
    }

    /// The output of the last layer but one `[n, tokens, hidden]`, and the projected output at each prompt's end
    /// `[n, projection]`. All prompts have the same number of tokens.
    ///
    /// # Errors
    /// When an id is not in the vocabulary, or there are more tokens than positions.
    pub fn forward(&self, prompts: &[Vec<u32>]) -> Result<(Tensor, Tensor)> {
        let tokens = prompts.first().map_or(0, Vec::len);
        let ids = Tensor::new(prompts.concat(), &Device::Cpu)?.reshape((prompts.len(), tokens))?;
        let mut x = self.tokens.forward(&ids)?.broadcast_add(&self.positions.narrow(0, 0, tokens)?)?;
        let mask = causal_mask(tokens)?;
        let mut penultimate = x.clone();
        for layer in &self.layers {
            penultimate = x;
            x = layer.forward(&penultimate, &mask, &self.config)?;
        }
        let ends: Vec<u32> = prompts.iter().map(|ids| self.end(ids) as u32).collect();
        let index = Tensor::new(ends, &Device::Cpu)?.reshape((prompts.len(), 1, 1))?;
        let index = index.broadcast_as((prompts.len(), 1, self.config.hidden_size))?.contiguous()?;
        let pooled = self.final_norm.forward(&x)?.gather(&index, 1)?.squeeze(1)?;
        Ok((penultimate, self.projection.forward(&pooled)?))
    }

    /// Position of the first token that ends the prompt.
    fn end(&self, ids: &[u32]) -> usize {
        let end = if self.config.eos_token_id == LEGACY_END { ids.iter().copied().max().unwrap_or(0) } else { self.config.eos_token_id };
        ids.iter().position(|id| *id == end).unwrap_or(0)
    }
}

impl Layer {
    fn new(weights: VarBuilder<'_>, config: &ClipConfig) -> Result<Self> {
        let (h, mlp, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let attention = |name: &str| linear(h, h, weights.pp("self_attn").pp(name));
        Ok(Self {
            norm1: layer_norm(h, eps, weights.pp("layer_norm1"))?,
            qkv: [attention("q_proj")?, attention("k_proj")?, attention("v_proj")?],
            out: attention("out_proj")?,
            norm2: layer_norm(h, eps, weights.pp("layer_norm2"))?,
            fc1: linear(h, mlp, weights.pp("mlp.fc1"))?,
            fc2: linear(mlp, h, weights.pp("mlp.fc2"))?,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Tensor, config: &ClipConfig) -> Result<Tensor> {
        let (n, tokens, h) = x.dims3()?;
        let heads = config.num_attention_heads;
        let normed = self.norm1.forward(x)?;
        let head = |layer: &Linear| layer.forward(&normed)?.reshape((n, tokens, heads, h / heads))?.transpose(1, 2)?.contiguous();
        let [q, k, v] = &self.qkv;
        let scores = (head(q)?.matmul(&head(k)?.t()?)? * ((h / heads) as f64).powf(-0.5))?;
        let weights = ops::softmax(&scores.broadcast_add(mask)?, D::Minus1)?;
        let attended = weights.matmul(&head(v)?)?.transpose(1, 2)?.reshape((n, tokens, h))?;
        let x = (x + self.out.forward(&attended)?)?;
        let inner = self.fc1.forward(&self.norm2.forward(&x)?)?;
        let inner = match config.hidden_act {
            Activation::QuickGelu => (&inner * ops::sigmoid(&(&inner * 1.702)?)?)?,
            Activation::Gelu => inner.gelu_erf()?,
        };
        &x + self.fc2.forward(&inner)?
    }
}

/// `[tokens, tokens]`: zero where a token may look, minus infinity at those behind it.
fn causal_mask(tokens: usize) -> Result<Tensor> {
    let row = |i: usize| (0..tokens).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 });
    let mask: Vec<f32> = (0..tokens).flat_map(row).collect();
    Tensor::from_vec(mask, (tokens, tokens), &Device::Cpu)?.to_dtype(DType::F32)
}
