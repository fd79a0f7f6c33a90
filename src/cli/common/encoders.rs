//! What stands around a network: prompts to embeddings, latents to images. The demo's stand-ins are part of the network's
//! settings; Stable Diffusion 3's encoders and autoencoder are read from the files of its pipeline, when they are first needed.

use std::path::PathBuf;

use super::Outcome;
use super::draw::Prompts;
#[cfg(feature = "text")]
use crate::Error;
use crate::Result;
use crate::config::EncodersConfig;
use crate::format::Pipeline;
use crate::text::TextConfig;
use crate::vae::CodecConfig;

/// Key of a checkpoint's notes that names the pipeline it belongs to.
pub const NOTE: &str = "encoders";

/// The encoders of one network.
#[derive(Debug)]
pub struct Encoders<'a> {
    /// The network's settings.
    pub pipeline: &'a Pipeline,
    /// Files of the pipeline, for networks whose settings do not hold all of it.
    files: PathBuf,
    #[cfg_attr(not(feature = "text"), expect(dead_code, reason = "only the encoders read it"))]
    config: EncodersConfig,
    #[cfg(feature = "text")]
    autoencoder: std::sync::OnceLock<crate::vae::Autoencoder>,
}

impl<'a> Encoders<'a> {
    /// The encoders of the network that was read from `origin`: from `encoders.path`, else where its notes say, else from there.
    pub fn new(config: &EncodersConfig, pipeline: &'a Pipeline, origin: &str) -> Self {
        let files = match (config.path.as_str(), pipeline.notes.get(NOTE)) {
            ("", Some(path)) => path,
            ("", None) => origin,
            (path, _) => path,
        };
        Self {
            pipeline,
            files: files.into(),
            config: config.clone(),
            #[cfg(feature = "text")]
            autoencoder: std::sync::OnceLock::new(),
        }
    }

    /// Where the files are, to be noted in a student: None where the settings are all there is.
    pub fn origin(&self) -> Option<String> {
        let outside = matches!(self.pipeline.text, TextConfig::External { .. });
        outside.then(|| std::path::absolute(&self.files).unwrap_or_else(|_| self.files.clone()).to_string_lossy().into_owned())
    }

    /// Context rows of a prompt.
    pub fn tokens(&self) -> Result<usize> {
        match &self.pipeline.text {
            #[cfg(feature = "text")]
            TextConfig::External { .. } => Ok(crate::text::sd3::CLIP_TOKENS + self.config.t5_tokens),
            text => text.tokens(),
        }
    }

    /// Encodes prompts.
    pub fn prompts(&self, names: &[String]) -> Outcome<Prompts> {
        match &self.pipeline.text {
            #[cfg(feature = "text")]
            TextConfig::External { context_dim, pooled_dim } => Ok(Prompts::on_disk(names, self.cached(names, *context_dim, *pooled_dim)?)),
            text => Ok(Prompts::in_memory(names, text.encode(names)?)),
        }
    }

    /// Whether latents can become images here.
    pub fn draws(&self) -> bool {
        match &self.pipeline.codec {
            #[cfg(feature = "text")]
            CodecConfig::External { .. } => self.files.is_file() || self.files.join("vae").is_dir(),
            codec => !matches!(codec, CodecConfig::External { .. }),
        }
    }

    /// Shape of the image of a latent.
    pub fn image_shape(&self, latent: [usize; 3]) -> Result<[usize; 3]> {
        match &self.pipeline.codec {
            #[cfg(feature = "text")]
            CodecConfig::External { downscale, .. } => Ok([3, latent[1] * downscale, latent[2] * downscale]),
            codec => codec.image_shape(latent),
        }
    }

    /// Latents `[n, C', H', W']` of images `[n, C, H, W]`.
    pub fn encode(&self, images: &[f32], image: [usize; 3]) -> Result<Vec<f32>> {
        match &self.pipeline.codec {
            #[cfg(feature = "text")]
            CodecConfig::External { .. } => self.autoencoder()?.encode(images, image),
            codec => codec.encode(images, image),
        }
    }

    /// Tells one autoencoder from another; empty where the codec is part of the network's settings.
    pub fn autoencoder_fingerprint(&self) -> Result<String> {
        match &self.pipeline.codec {
            #[cfg(feature = "text")]
            CodecConfig::External { .. } => Ok(self.autoencoder()?.fingerprint().to_owned()),
            #[cfg(not(feature = "text"))]
            CodecConfig::External { .. } => self.pipeline.codec.latent_shape([3, 0, 0]).map(|_| String::new()),
            CodecConfig::Dct { .. } => Ok(String::new()),
        }
    }

    /// Images `[n, C, H, W]` of latents `[n, C', H', W']`.
    pub fn decode(&self, latents: &[f32], latent: [usize; 3]) -> Result<Vec<f32>> {
        match &self.pipeline.codec {
            #[cfg(feature = "text")]
            CodecConfig::External { downscale, .. } => {
                let autoencoder = self.autoencoder()?;
                if autoencoder.downscale() != *downscale {
                    let found = autoencoder.downscale();
                    return Err(Error::file(
                        &self.files,
                        format!("holds an autoencoder of {found} pixels a latent, the network's has {downscale}"),
                    ));
                }
                autoencoder.decode(latents, latent)
            }
            codec => codec.decode(latents, latent),
        }
    }
}

#[cfg(feature = "text")]
impl Encoders<'_> {
    fn autoencoder(&self) -> Result<&crate::vae::Autoencoder> {
        if let Some(loaded) = self.autoencoder.get() {
            return Ok(loaded);
        }
        let loaded = crate::vae::Autoencoder::open(&self.files)?;
        Ok(self.autoencoder.get_or_init(|| loaded))
    }

    fn sources(&self) -> Result<crate::text::sd3::EncoderSources> {
        use crate::text::sd3::EncoderSources;
        if !self.files.is_file() {
            return EncoderSources::pipeline(&self.files);
        }
        if self.config.tokenizers.is_empty() {
            return Err(Error::Usage(format!(
                "{} holds no tokenizers: name a folder that has `tokenizer`, `tokenizer_2` and `tokenizer_3` with encoders.tokenizers",
                self.files.display()
            )));
        }
        EncoderSources::single(&self.files, self.config.tokenizers.as_ref())
    }

    /// Files of the encoded prompts. Loads the encoders, gigabytes, only if one is missing, and gives them back.
    fn cached(&self, names: &[String], context_dim: usize, pooled_dim: usize) -> Outcome<Vec<PathBuf>> {
        use super::Progress;
        use crate::text::sd3::{PromptCache, Sd3Encoders};
        let (sources, config) = (self.sources()?, &self.config);
        let fingerprint = Sd3Encoders::fingerprint_of(&sources, config.t5_tokens, config.t5, context_dim)?;
        let cache = PromptCache::new(&config.cache_folder(), &fingerprint, [self.tokens()?, context_dim], pooled_dim);
        let missing: Vec<&String> = names.iter().filter(|name| !cache.holds(name)).collect();
        if !missing.is_empty() {
            let mut encoders = Sd3Encoders::load(&sources, config.t5_tokens, config.t5, context_dim)?;
            if encoders.pooled_dim() != pooled_dim {
                let found = encoders.pooled_dim();
                return Err(Error::file(
                    &self.files,
                    format!("has encoders whose pooled text is {found} wide, the network's is {pooled_dim}"),
                )
                .into());
            }
            for (which, (count, example)) in ["CLIP", "T5"].iter().zip(encoders.cut(&missing)?) {
                if let Some(example) = example {
                    tracing::warn!("{count} prompts are too long for {which}, which ignores the rest, as in {example:?}");
                }
            }
            let mut progress = Progress::new("prompts", missing.len() as u64, 0);
            // One by one: what is kept of a prompt then does not depend, in its last bits, on those beside it.
            for (i, name) in missing.iter().enumerate() {
                super::interrupt::check()?;
                for embedding in encoders.encode(&[name.as_str()], |_| ())? {
                    cache.store(name, &embedding)?;
                }
                progress.set(i as u64 + 1, String::new);
            }
            progress.finish(&format!("{} prompts encoded", missing.len()));
        }
        Ok(names.iter().map(|name| cache.file(name)).collect())
    }
}
