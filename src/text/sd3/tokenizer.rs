//! Prompts to token ids, padded to one length. Reads `tokenizer.json`, and for CLIP also the older pair of `vocab.json` and
//! `merges.txt`, which is what the published folders hold.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, Encoding, PaddingParams, PaddingStrategy, SplitDelimiterBehavior, Tokenizer, TruncationParams};

use super::guard::guarded;
use crate::format::parts::read_json;
use crate::{Error, Result};

const FILE: &str = "tokenizer.json";
const ABOUT: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// How CLIP cuts a prompt into words: special tokens, contractions, letters, single digits, anything else.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A tokenizer that cuts and pads every prompt to the same number of tokens.
#[derive(Debug)]
pub struct PromptTokenizer {
    /// Pads.
    padded: Tokenizer,
    /// Neither pads nor cuts, to see what is lost.
    whole: Tokenizer,
    length: usize,
}

/// A special token: its text, or an object that has it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Special {
    Text(String),
    Object { content: String },
}

impl Special {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

#[derive(Default, Deserialize)]
struct About {
    pad_token: Option<Special>,
}

impl PromptTokenizer {
    /// Opens a tokenizer's folder; prompts become `length` tokens.
    ///
    /// # Errors
    /// When its files are missing or damaged, or its padding token is not in its vocabulary.
    pub fn open(folder: &Path, length: usize) -> Result<Self> {
        let file = folder.join(FILE);
        let bad = |path: PathBuf| move |error: tokenizers::Error| Error::file(&path, format!("is no tokenizer that can be read: {error}"));
        let mut whole = if file.is_file() {
            guarded(|| Tokenizer::from_file(&file)).unwrap_or_else(|cause| Err(cause.into())).map_err(bad(file))?
        } else if folder.join("vocab.json").is_file() {
            let pad = padding_token(folder)?;
            guarded(|| from_lists(folder, &pad)).unwrap_or_else(|cause| Err(cause.into())).map_err(bad(folder.join("vocab.json")))?
        } else if folder.join("spiece.model").is_file() {
            return Err(Error::file(
                folder,
                format!(
                    "has a spiece.model, but no {FILE}: add it (transformers writes one with `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`)"
                ),
            ));
        } else {
            return Err(Error::file(folder, format!("holds no tokenizer: {FILE} is looked for, or vocab.json with merges.txt")));
        };
        let pad = padding_token(folder)?;
        let Some(pad_id) = whole.token_to_id(&pad) else {
            return Err(Error::file(folder, format!("pads with {pad:?}, which is not in its vocabulary")));
        };
        let mut padded = whole.clone();
        let padding = PaddingParams { strategy: PaddingStrategy::Fixed(length), pad_id, pad_token: pad, ..PaddingParams::default() };
        let cut = TruncationParams { max_length: length, ..TruncationParams::default() };
        padded.with_padding(Some(padding)).with_truncation(Some(cut)).map_err(bad(folder.to_owned()))?;
        whole.with_padding(None).with_truncation(None).map_err(bad(folder.to_owned()))?;
        Ok(Self { padded, whole, length })
    }

    /// Token ids, `length` for each prompt.
    ///
    /// # Errors
    /// When a prompt cannot be encoded.
    pub fn encode<S: AsRef<str>>(&self, prompts: &[S]) -> Result<Vec<Vec<u32>>> {
        prompts.iter().map(|prompt| Ok(encoded(&self.padded, prompt.as_ref())?.get_ids().to_vec())).collect()
    }

    /// Whether a prompt has more tokens than fit.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn cuts(&self, prompt: &str) -> Result<bool> {
        Ok(encoded(&self.whole, prompt)?.len() > self.length)
    }
}

fn encoded(tokenizer: &Tokenizer, prompt: &str) -> Result<Encoding> {
    let outcome = guarded(|| tokenizer.encode(prompt, true)).unwrap_or_else(|cause| Err(cause.into()));
    outcome.map_err(|error| Error::Usage(format!("the prompt {prompt:?} cannot be cut into tokens: {error}")))
}

/// The token that fills up short prompts, from whichever file names it.
fn padding_token(folder: &Path) -> Result<String> {
    for name in [ABOUT, SPECIAL] {
        let path = folder.join(name);
        if path.is_file()
            && let Some(pad) = read_json::<About>(&path)?.pad_token
        {
            return Ok(pad.text());
        }
    }
    Err(Error::file(folder, format!("does not name its padding token: {ABOUT} or {SPECIAL} must have a `pad_token`")))
}

/// CLIP's byte-level BPE from its two lists.
fn from_lists(folder: &Path, pad: &str) -> tokenizers::Result<Tokenizer> {
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let bpe = BPE::from_file(&path("vocab.json"), &path("merges.txt"));
    let mut tokenizer = Tokenizer::new(bpe.unk_token(END.into()).end_of_word_suffix("</w>".into()).build()?);
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ")?;
    tokenizer.with_normalizer(Some(Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()])))?;
    let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true)?;
    let bytes = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![words.into(), bytes.into()])));
    let id =
        |tokenizer: &Tokenizer, token: &str| tokenizer.token_to_id(token).ok_or_else(|| format!("there is no {token} in the vocabulary"));
    let (start, end) = (id(&tokenizer, START)?, id(&tokenizer, END)?);
    let frame = RobertaProcessing::new((END.into(), end), (START.into(), start)).trim_offsets(false).add_prefix_space(false);
    tokenizer.with_post_processor(Some(frame));
    // The padding token too: transformers keeps CLIP-G's, `!`, out of words.
    tokenizer.add_special_tokens([START, END, pad].map(|token| AddedToken::from(token, true)))?;
    Ok(tokenizer)
}
