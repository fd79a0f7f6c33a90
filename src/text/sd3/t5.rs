//! T5's encoder (Raffel et al., arXiv 1910.10683), candle's, without a mask: Stable Diffusion 3 lets padding be looked at.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::t5::{ActivationWithOptionalGating, Config, T5EncoderModel};

/// T5's encoder. Weights stay in the type they are kept in; everything is computed in f32.
#[derive(Debug)]
pub struct T5 {
    model: T5EncoderModel,
    width: usize,
}

impl T5 {
    /// Loads the weights, named as transformers names them.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn new(weights: VarBuilder<'_>, config: &Config) -> Result<Self> {
        Ok(Self { model: T5EncoderModel::load(weights, config)?, width: config.d_model })
    }

    /// T5-XXL (version 1.1), as Stable Diffusion 3 uses it.
    pub fn xxl() -> Config {
        Config {
            d_model: 4096,
            d_kv: 64,
            d_ff: 10240,
            num_layers: 24,
            num_heads: 64,
            feed_forward_proj: ActivationWithOptionalGating { gated: true, activation: candle_nn::Activation::NewGelu },
            tie_word_embeddings: false,
            ..Config::default()
        }
    }

    /// Width of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows `[n, tokens, width]`. All prompts have the same number of tokens.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn forward(&mut self, prompts: &[Vec<u32>]) -> Result<Tensor> {
        let tokens = prompts.first().map_or(0, Vec::len);
        let ids = Tensor::new(prompts.concat(), &Device::Cpu)?.reshape((prompts.len(), tokens))?;
        self.model.forward_dt(&ids, Some(DType::F32))
    }
}
