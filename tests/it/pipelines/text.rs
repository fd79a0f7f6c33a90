//! Tokens, contexts and pooled embeddings.

use ladd_fast::text::sd3::{CLIP_TOKENS, EncoderSources, PromptTokenizer, Sd3Encoders};

use super::{expected, folder, single_file};
use crate::golden::close;

const CONTEXT: usize = 48;

fn prompts() -> Vec<String> {
    serde_json::from_str(expected().metadata_value("prompts").unwrap()).unwrap()
}

fn t5_tokens() -> usize {
    expected().metadata_value("t5_tokens").unwrap().parse().unwrap()
}

/// Encodes all prompts: contexts and pooled embeddings, one after the other.
fn encode(sources: &EncoderSources, with_t5: bool) -> (Vec<f32>, Vec<f32>) {
    let mut encoders = Sd3Encoders::load(sources, t5_tokens(), with_t5, CONTEXT).unwrap();
    assert_eq!((encoders.tokens(), encoders.pooled_dim()), (CLIP_TOKENS + t5_tokens(), 40));
    let mut done = 0;
    let embeddings = encoders.encode(&prompts(), |n| done = n).unwrap();
    assert_eq!(done, prompts().len());
    let rows = |e: &ladd_fast::text::TextEmbedding| assert_eq!(e.context.len(), encoders.tokens() * CONTEXT);
    embeddings.iter().for_each(rows);
    (embeddings.iter().flat_map(|e| e.context.clone()).collect(), embeddings.iter().flat_map(|e| e.pooled.clone()).collect())
}

#[test]
fn tokens_are_those_of_transformers() {
    let expected = expected();
    for (name, length) in [("tokenizer", CLIP_TOKENS), ("tokenizer_2", CLIP_TOKENS), ("tokenizer_3", t5_tokens())] {
        let tokenizer = PromptTokenizer::open(&folder("sd3").join(name), length).unwrap();
        let ids: Vec<i64> = tokenizer.encode(&prompts()).unwrap().concat().into_iter().map(i64::from).collect();
        assert_eq!(ids, expected.i64(&format!("{name}.ids")).unwrap(), "{name}");
        let cut: Vec<bool> = prompts().iter().map(|prompt| tokenizer.cuts(prompt).unwrap()).collect();
        let longest = usize::from(name == "tokenizer_3");
        assert_eq!((cut[1], cut[2]), (false, true), "{name}");
        assert_eq!(cut[0], longest == 1, "{name}");
    }
}

#[test]
fn contexts_are_those_of_diffusers_with_t5_and_without() {
    let (expected, sources) = (expected(), EncoderSources::pipeline(&folder("sd3")).unwrap());
    let (context, pooled) = encode(&sources, true);
    close("context", &context, &expected.f32("context").unwrap(), 1e-5);
    close("pooled", &pooled, &expected.f32("pooled").unwrap(), 1e-5);
    let (context, without) = encode(&sources, false);
    close("context without T5", &context, &expected.f32("context_without_t5").unwrap(), 1e-5);
    assert_eq!(without, pooled);
}

#[test]
fn a_single_file_says_what_it_lacks() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("sd3_incl_clips.safetensors");
    let parts = [("text_encoder", "model.safetensors"), ("text_encoder_2", "model.safetensors")];
    single_file(&file, &parts, |part, name| {
        let prefix = if part == "text_encoder" { "text_encoders.clip_l.transformer." } else { "text_encoders.clip_g.transformer." };
        Some(format!("{prefix}{name}"))
    });
    let sources = EncoderSources::single(&file, &folder("sd3")).unwrap();
    assert!(!sources.has_t5());
    // The tiny CLIPs are not those of Stable Diffusion 3, whose sizes a single file is taken to have.
    let error = Sd3Encoders::load(&sources, 21, true, CONTEXT).unwrap_err().to_string();
    assert!(error.contains("[77, 16] where [77, 768]") && error.contains("sd3_incl_clips"), "{error}");
}

#[test]
fn what_is_missing_or_damaged_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let copy = |what: &[&str]| {
        let _ = std::fs::remove_dir_all(scratch.path());
        for part in what {
            std::fs::create_dir_all(scratch.path().join(part)).unwrap();
            for entry in std::fs::read_dir(folder("sd3").join(part)).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), scratch.path().join(part).join(entry.file_name())).unwrap();
            }
        }
        EncoderSources::pipeline(scratch.path())
    };
    let error = |sources: EncoderSources| Sd3Encoders::load(&sources, 21, true, CONTEXT).unwrap_err().to_string();
    let clips = ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"];
    let all = [&clips[..], &["text_encoder_3", "tokenizer_3"]].concat();

    let sources = copy(&clips).unwrap();
    assert!(!sources.has_t5());
    assert!(error(sources).contains("text_encoder_3"));
    assert!(EncoderSources::pipeline(&scratch.path().join("none")).unwrap_err().to_string().contains("none"));

    let sources = copy(&all).unwrap();
    let path = scratch.path().join("text_encoder_2/model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let text = error(sources);
    assert!(text.contains("text_encoder_2") && text.contains("truncated"), "{text}");

    let sources = copy(&all).unwrap();
    std::fs::remove_file(scratch.path().join("tokenizer_2/merges.txt")).unwrap();
    assert!(error(sources).contains("vocab.json: is no tokenizer that can be read"), "merges");

    // On both the crate `tokenizers` panics; the first was found by fuzzing.
    let start = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "pre_tokenizer": null, "#;
    for damage in [r#""decoder": {3}"#, r#""normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}"#] {
        let sources = copy(&all).unwrap();
        std::fs::write(scratch.path().join("tokenizer_3/tokenizer.json"), format!("{start}{damage}")).unwrap();
        let text = error(sources);
        assert!(text.contains("tokenizer.json: is no tokenizer that can be read") && !text.contains('\n'), "{text}");
    }

    let sources = copy(&all).unwrap();
    std::fs::remove_file(scratch.path().join("tokenizer_3/tokenizer.json")).unwrap();
    std::fs::write(scratch.path().join("tokenizer_3/spiece.model"), b"x").unwrap();
    let text = error(sources);
    assert!(text.contains("spiece.model, but no tokenizer.json") && !text.contains('\n'), "{text}");

    let sources = copy(&all).unwrap();
    std::fs::write(scratch.path().join("tokenizer/tokenizer_config.json"), r#"{"pad_token": "<none>"}"#).unwrap();
    assert!(error(sources).contains("pads with \"<none>\""));

    let sources = copy(&all).unwrap();
    let wide = Sd3Encoders::load(&sources, 21, true, 64).unwrap_err().to_string();
    assert!(wide.contains("48 wide, the network's context 64"), "{wide}");
    let narrow = Sd3Encoders::load(&sources, 21, false, 32).unwrap_err().to_string();
    assert!(narrow.contains("40 wide") && narrow.contains("only 32"), "{narrow}");
}

#[test]
fn other_weights_and_settings_have_other_fingerprints() {
    let sources = EncoderSources::pipeline(&folder("sd3")).unwrap();
    let print = |tokens, with_t5| Sd3Encoders::load(&sources, tokens, with_t5, CONTEXT).unwrap().fingerprint().to_owned();
    assert_eq!(print(21, true), print(21, true));
    assert_ne!(print(21, true), print(22, true));
    assert_ne!(print(21, true), print(21, false));
}
