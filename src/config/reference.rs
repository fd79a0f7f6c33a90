//! The meaning of every key, and the page `docs/configuration.md` that is made from it.

use std::fmt::Write as _;

use super::{Config, PRESETS, Sources, layers};
use crate::{Error, Result};

/// Every key with its meaning, in the order of the page. A test holds this list against the configuration struct.
const MEANINGS: &[(&str, &str)] = &[
    ("preset", "The preset that the values begin from."),
    ("seed", "Seed of every random draw: the same seed gives the same run, on any number of threads."),
    (
        "task",
        "What the network is for: `generate` (pictures from prompts), `edit` (a picture changed as an instruction says) or `inpaint` (the \
         painted part of a picture filled in). [edit.md](edit.md) has the method.",
    ),
    ("threads", "Worker threads; 0 means all cores."),
    ("device", "Where to compute: `auto` (the first usable GPU, else the processor), `cpu`, `cuda` or `cuda:N`."),
    (
        "deterministic",
        "`false` lets a GPU add up sums in attention's backward as they come, without waits for an order: runs then differ in their last bits, \
         and a resumed run is no longer the same to the bit. It changes nothing on the processor, nor on GPUs before Hopper.",
    ),
    (
        "gemm_algorithms",
        "How the algorithms of matrix products are chosen on a GPU. `heuristic`: cuBLASLt's first proposal, so that two runs have the same \
         bits. `measured`: the fastest of eight, kept in `gemm_algorithms.json` in the run's folder; `--resume` then gives the same bits, \
         another run may not. Only `distill` and `pretrain` measure.",
    ),
    ("run_dir", "Folder in which every run gets a folder of its own."),
    ("teacher.checkpoint", "The teacher's checkpoint (safetensors), or `builtin` for the demo's teacher that is part of the program."),
    (
        "data.shards",
        "Folder of latent shards to train on. Empty: in `distill` the teacher synthesizes them into the run folder first, `pretrain` takes \
         Fashion-MNIST.",
    ),
    (
        "data.images",
        "Folder of the Fashion-MNIST idx files, which `pretrain`, editing and inpainting read (`scripts/get-demo-data` fetches them); or `builtin`: the first 2048 training images, which are part of the program.",
    ),
    (
        "data.latent",
        "How images become latents: `dct` (the demo's stand-in for a VAE) or `vae`, Stable Diffusion 3's. `pretrain` takes `dct` alone; the rest read it from the network.",
    ),
    ("data.block", "Side of the blocks of `dct`, in pixels: every block becomes one latent position."),
    ("data.whiten", "How much the latents' channels of a new network are whitened: 1 gives each unit variance, 0 scales all alike."),
    (
        "data.text",
        "How prompts become embeddings: `words` (the demo's stand-in for text encoders) or `sd3`, CLIP and T5; otherwise as `latent`.",
    ),
    ("data.tokens", "Words of a prompt that a new network with `words` uses; the rest is cut off."),
    (
        "encoders.path",
        "Folder of a diffusers pipeline (`text_encoder`, ..., `vae`), or an original single file with text encoders and autoencoder. Empty: \
         where the network was read. Needs the feature `text`.",
    ),
    ("encoders.tokenizers", "Folder with `tokenizer`, `tokenizer_2` and `tokenizer_3`, for single files, which hold none."),
    ("encoders.t5", "Whether T5 encodes prompts; without it its rows are zeros, as in diffusers."),
    ("encoders.t5_tokens", "Rows of T5's, 1 to 512. Students must be drawn from with as many as they were distilled with."),
    ("encoders.cache", "Folder in which encoded prompts are kept, 1.3 MB each. Empty: `ladd-fast/prompts` in the user's cache folder."),
    ("prepare.area", "Most pixels of a picture. 0: the size the network was trained for."),
    ("prepare.multiple", "Sides are multiples of it, in pixels. 0: 64, or one patch where the codec is `dct`."),
    ("prepare.max_ratio", "Largest ratio of the sides; longer pictures are cut to it."),
    ("prepare.min_side", "Pictures whose shorter side has fewer pixels are skipped. 0: half the side of a square of `area`."),
    ("prepare.crop", "What is kept of a picture whose aspect is not its bucket's: `subject`, where there is most to see, or `center`."),
    ("prepare.background", "What is behind transparent pixels: `#rrggbb`, `white` or `black`."),
    (
        "prepare.captions",
        "Where a caption comes from that is not beside its picture: `files` refuses, `filename` takes the name, `none` leaves it empty.",
    ),
    (
        "prepare.hold_out",
        "Share of the pictures, chosen by a hash of their names, that goes to `held-out/` instead, to measure generalisation.",
    ),
    (
        "prepare.pairs",
        "Whether every picture is an edit of another one, its source, for `--task edit`: `NAME.source.jpg`, or `source` in the list of captions.",
    ),
    ("prepare.shard_size", "Latents per shard file; an interrupted preparation continues after the last whole shard of each bucket."),
    ("prepare.emoji_styles", "Styles of emoji, by the names of their folders. Empty: all there are."),
    ("prepare.emoji_categories", "Categories of emoji, such as `Food & Drink`. Empty: all."),
    ("synthesize.count", "How many latents the teacher draws."),
    ("synthesize.steps", "Euler steps per latent."),
    ("synthesize.guidance", "Constant guidance scale; 1 is unguided. The student learns to draw guided images without guidance."),
    ("synthesize.batch", "Latents drawn at once."),
    ("synthesize.shard_size", "Latents per shard file; an interrupted synthesis continues after the last whole shard."),
    (
        "synthesize.prompts",
        "File of prompts: `.jsonl` (one JSON object a line), `.parquet` (a column of text; snappy, gzip, lz4 or uncompressed), or text with \
         one prompt a line. Empty: the captions of the demo's classes.",
    ),
    ("synthesize.prompt_key", "Key or column of the prompts in `.jsonl` and `.parquet`. Empty: the first of `prompt`, `text`, `caption`."),
    ("synthesize.negative_prompt", "What guidance steers away from. Empty: the empty prompt."),
    ("synthesize.height", "Image height in pixels; 0 means the size the teacher was trained for."),
    ("synthesize.width", "Image width in pixels; 0 means the size the teacher was trained for."),
    (
        "synthesize.sizes",
        "Several sizes in pixels, `HEIGHTxWIDTH`, with weights where they are not drawn equally often, as in `[\"1024x1024@2\", \"832x1216\"]`. \
         Which sample has which follows from the seed and its number.",
    ),
    (
        "synthesize.aspects",
        "The same by aspects `WIDTH:HEIGHT`, as in `[\"1:1@2\", \"3:2\", \"2:3\"]`: the nearest sizes of `height` times `width` pixels whose sides \
         are multiples of 64 (of a patch for small images).",
    ),
    ("synthesize.shift", "Shift of Euler's times; 0 means the one stored with the teacher."),
    (
        "distill.method",
        "What the student is trained by: `ladd`, or a baseline: `add` (the adversarial loss and section `[add]`), `score` (section `[add]` alone), \
         `lcm` (consistency distillation, section `[lcm]`) or `regression` (onto the latents).",
    ),
    (
        "distill.student",
        "The network that the student begins as, which may be smaller or larger than the teacher but reads the same latents and prompts. Empty: the teacher.",
    ),
    ("edit.pairs", "How many pairs of a source and its target the demo trains editing on."),
    (
        "edit.exact",
        "Share of the pairs whose instruction has one exact answer (`mirror it`); the others' targets are drawn by the base teacher.",
    ),
    ("edit.strength", "Time to which a source is noised before the base teacher draws its target from it: higher changes more."),
    ("edit.steps", "Euler steps from there."),
    ("edit.target_guidance", "Guidance scale of the base teacher."),
    (
        "edit.candidates",
        "Targets drawn for each source. The one is kept that the classifier takes for what was asked and that overlaps most with the source; \
         where there is none, an exact pair takes its place.",
    ),
    ("inpaint.masks", "Kinds of masks to train with, all equally often: `stroke`, `box`, `outpaint`."),
    ("distill.steps", "Optimiser steps."),
    ("distill.batch", "Samples per optimiser step."),
    ("distill.accumulate", "Micro-batches a step is cut into, to save memory; must divide `batch`. The result is the same to rounding."),
    ("distill.ema_decay", "Decay of the moving average of the student; the average is what is measured and saved."),
    ("distill.checkpoint_every", "Steps between checkpoints; 0 writes only the last."),
    ("distill.keep_checkpoints", "How many checkpoints are kept."),
    ("distill.sample_every", "Steps between sample grids; 0 draws only the first and the last."),
    ("distill.eval_every", "Steps between measurements of quality; 0 measures only before and after."),
    ("distill.log_every", "Steps between records in `metrics.jsonl`."),
    (
        "distill.activation_checkpointing",
        "Of which blocks only the inputs are kept and the rest is recomputed, to the same bits: `off`, `all` (about a third more time), or \
         `auto`: as few as the device's memory allows.",
    ),
    ("distill.control", "Also train the control: the same student by plain regression onto the same latents, for the table."),
    ("distill.control_steps", "Steps of the control; 0 means as many as `distill.steps`."),
    ("lora.rank", "Rank of the adapters that are trained instead of the student's weights (see [lora.md](lora.md)); 0 trains all weights."),
    ("lora.alpha", "The adapters' product is multiplied by `alpha / rank`; 0 means as much as `rank`."),
    (
        "lora.targets",
        "Which matrices get an adapter: `attention` (queries, keys, values and outputs of both streams, as diffusers' scripts train), \
         `attention2`, `mlp`, `adaln`, `embedders`, `all`, or ends of diffusers' module names, such as `attn.to_q`.",
    ),
    (
        "lora.reapply",
        "Files of adapters that are merged into the finished student, such as the teacher's from a preference training (DPO).",
    ),
    ("lora.reapply_scales", "How strongly each of them. Empty: 1."),
    (
        "ladd.update",
        "`simultaneous`: one forward serves the student and the heads. `alternating`: the student first, then the heads on fresh draws.",
    ),
    ("ladd.loss", "`hinge` or `non_saturating`."),
    ("ladd.student_t", "How the student's time `t` is drawn (see *Timestep distributions*)."),
    ("ladd.renoise_t", "How the discriminator's time is drawn: high times judge structure, low times texture."),
    ("ladd.taps", "Blocks of the teacher that feed a head, counted from 0. Empty: every block."),
    ("ladd.head_width", "Channels inside a head."),
    ("ladd.r1_weight", "Weight of the approximate R1 penalty; 0 turns it off."),
    ("ladd.r1_sigma", "Size of the perturbation in that penalty."),
    ("ladd.mismatch_weight", "Weight of real latents with another sample's prompt as further fakes; 0 turns them off."),
    ("ladd.distillation_weight", "Weight of the squared error to the real latent in the student's loss; 0 turns it off."),
    ("ladd.adversarial_weight", "Weight of the adversarial loss in the student's loss; 0 leaves a plain regression."),
    (
        "ladd.teacher_precision",
        "What the judging teacher's blocks multiply in: `bf16` (fp32 on the processor), or `fp8`: the forward's products in e4m3, on a GPU of \
         compute capability 9.0 or emulated on the processor. Latents are drawn in `bf16` always.",
    ),
    ("add.weight", "Weight of ADD's distillation loss beside the adversarial one."),
    ("add.weighting", "Its weight by time, `c(t')`: `exponential` (`1 - t'`), `sds` (`t' (1 - t') / 2`) or `constant`."),
    ("add.t", "How the time `t'` is drawn to which the student's sample is renoised for the teacher."),
    ("add.teacher_guidance", "Guidance scale of the teacher's answer, 1 is unguided; 0 means `synthesize.guidance`."),
    (
        "lcm.intervals",
        "Into how many intervals of equal length the flow is cut, at most 16; the student's times are their ends, and the teacher's solver crosses one in a step.",
    ),
    ("lcm.teacher_guidance", "Guidance scale of the teacher's step, 1 is unguided; 0 means `synthesize.guidance`."),
    ("optim.student.lr", "Learning rate of the student. At the demo's size 3e-4 already costs diversity."),
    ("optim.student.beta1", "Decay of the first moment."),
    ("optim.student.beta2", "Decay of the second moment."),
    ("optim.student.eps", "Added to the root of the second moment."),
    ("optim.student.weight_decay", "Decoupled weight decay."),
    ("optim.student.clip", "Largest global gradient norm; larger gradients are scaled down to it."),
    ("optim.student.warmup_steps", "Steps of linear warm-up."),
    ("optim.student.schedule", "What follows the warm-up: `constant` or `cosine`."),
    (
        "optim.student.moments",
        "How the moments are kept: `fp32`, or `packed`: one byte a weight and two, stochastically rounded. With `beta1` 0 there is no first moment.",
    ),
    ("optim.heads.lr", "Learning rate of the discriminator heads."),
    ("optim.heads.beta1", "As for the student."),
    ("optim.heads.beta2", "As for the student."),
    ("optim.heads.eps", "As for the student."),
    ("optim.heads.weight_decay", "As for the student."),
    ("optim.heads.clip", "As for the student."),
    ("optim.heads.warmup_steps", "As for the student."),
    ("optim.heads.schedule", "As for the student."),
    ("optim.heads.moments", "As for the student."),
    ("sample.steps", "Sampling steps; 0 means 4 for students and 28 for teachers."),
    ("sample.guidance", "Guidance scale, 1 is unguided; 0 means 1 for students and 3 for teachers."),
    (
        "sample.image_guidance",
        "Guidance scale of the image, for editing and inpainting, 1 is unguided; 0 means 1 for students and 1.5 for teachers.",
    ),
    ("sample.shift", "Shift of Euler's times; 0 means the one stored with the network."),
    ("sample.sampler", "`renoise`, `euler`, or `auto`: `renoise` for students and `euler` for teachers."),
    ("sample.height", "Image height in pixels; 0 means the size the network was trained for."),
    ("sample.width", "Image width in pixels; 0 means the size the network was trained for."),
    ("sample.batch", "Images drawn at once."),
    ("eval.samples", "Images drawn per setting. Fréchet distances from different numbers of images do not compare."),
    ("eval.batch", "Images drawn at once."),
    ("eval.student_steps", "Step counts at which the student is measured, unguided, with the renoise sampler."),
    ("eval.teacher_steps", "Step counts at which the teacher is measured, guided and unguided, with Euler."),
    ("eval.guidance", "Guidance scale of the guided teacher."),
    ("eval.image_guidance", "Guidance scale of the image of the guided teacher, for editing and inpainting."),
    ("model.depth", "Joint blocks of the network that `pretrain` trains. Other commands read the shape from the checkpoint."),
    ("model.heads", "Attention heads; the hidden width is `heads * head_dim`."),
    ("model.head_dim", "Width of one attention head; the CUDA kernels take 64 and 128."),
    ("model.in_channels", "Channels of the latent."),
    ("model.patch", "Side of the square patch that becomes one token."),
    ("model.context_dim", "Width of the text context (SD3: 4096)."),
    ("model.pooled_dim", "Width of the pooled text embedding (SD3: 2048)."),
    ("model.pos_embed_max", "Side of the stored positional grid, in tokens (SD3-medium: 192)."),
    ("model.qk_norm", "RMSNorm of queries and keys (SD3.5)."),
    ("model.dual_attention_blocks", "How many leading blocks have a second, image-only attention (SD3.5-medium: 13)."),
    ("pretrain.steps", "Optimiser steps."),
    ("pretrain.batch", "Samples per step."),
    ("pretrain.caption_dropout", "Share of samples trained without their caption, which is what guidance needs."),
    (
        "pretrain.image_dropout",
        "Share of samples of editing and inpainting trained without what conditions them, for guidance by the image. Half of the dropped captions lose it too: with both shares 2p, text, image and both are dropped with probability p each, as in InstructPix2Pix.",
    ),
    ("pretrain.t", "Distribution of the diffusion time."),
    ("pretrain.ema_decay", "Decay of the moving average of the weights that is saved."),
    ("pretrain.checkpoint_every", "Steps between checkpoints; 0 writes only the last."),
    ("pretrain.keep_checkpoints", "How many checkpoints are kept."),
    ("pretrain.log_every", "Steps between records in `metrics.jsonl`."),
    ("pretrain.sample_every", "Steps between grids of samples; 0 draws only the last."),
    ("pretrain.activation_checkpointing", "Of which blocks only the inputs are kept: `auto`, `off` or `all`, as in `distill`."),
    ("pretrain.optim.lr", "Learning rate."),
    ("pretrain.optim.beta1", "Decay of the first moment."),
    ("pretrain.optim.beta2", "Decay of the second moment."),
    ("pretrain.optim.eps", "Added to the root of the second moment."),
    ("pretrain.optim.weight_decay", "Decoupled weight decay."),
    ("pretrain.optim.clip", "Largest global gradient norm."),
    ("pretrain.optim.warmup_steps", "Steps of linear warm-up."),
    ("pretrain.optim.schedule", "`constant` or `cosine`."),
    ("pretrain.optim.moments", "`fp32` or `packed`."),
];

const HEAD: &str = "\
# Configuration

This page is made from the program (`UPDATE_DOCS=1 cargo test docs_list_every_key` rewrites it); a test fails when it is stale.

A command reads its settings in layers, later ones win:

1. the built-in defaults,
2. a preset: `--preset NAME`, or `preset = \"NAME\"` in the file, otherwise `demo`,
3. `--config FILE`, a TOML file that may name any of the keys below,
4. flags such as `--steps 100`,
5. `--set key=value`, with dotted keys and TOML values: `--set optim.student.lr=5e-5 --set eval.student_steps=1,2`.

Every run writes what it resolved to `config.toml` in its folder, which is a valid `--config FILE`.
An unknown key is an error that names the file and the line.

```toml
# my-run.toml, used by: ladd-fast distill --config my-run.toml
preset = \"demo\"
seed = 7

[distill]
steps = 1600

[ladd]
update = \"alternating\"
renoise_t = { kind = \"logit_normal\", mean = 0.0, std = 1.0 }
```

## Timestep distributions

`ladd.student_t`, `ladd.renoise_t`, `add.t` and `pretrain.t` are tables. `t = 1` is pure noise. Naming another `kind` replaces the whole table.

| kind | further keys | draws |
|---|---|---|
| `discrete` | `values`, `probs`, `warmup_probs`, `warmup_steps` | one of `values` with probability `probs`; `warmup_probs` in the first `warmup_steps` steps |
| `logit_normal` | `mean`, `std` | `sigmoid(mean + std n)`, clamped to [0.001, 0.999] |
| `uniform` | | uniform in (0, 1) |
| `shifted` | `shift` | uniform `u` mapped to `shift u / (1 + (shift - 1) u)` |

## Presets

| name | what for |
|---|---|
";

/// The page `docs/configuration.md`: every key, its default, what the presets `demo` and `sd3-medium` make of it, its meaning.
///
/// # Errors
/// When a preset is broken; a test prevents that.
pub fn reference_markdown() -> Result<String> {
    let defaults = Config::default();
    let demo = layers::load(&Sources::default())?;
    let sd3 = layers::load(&Sources { preset: Some("sd3-medium"), ..Sources::default() })?;
    let mut page = HEAD.to_owned();
    for preset in &PRESETS {
        let _ = writeln!(page, "| `{}` | {} |", preset.name, preset.about);
    }
    page.push_str("\nThe `sd3` presets hold the method's settings for those teachers. They were not run: no weights and no GPU were at hand. [sd3.md](sd3.md) has the commands.\n");
    let mut section = "?".to_owned();
    for (key, meaning) in MEANINGS {
        let (here, leaf) = key.rsplit_once('.').unwrap_or(("", key));
        if here != section {
            section = here.to_owned();
            let title = if here.is_empty() { "Top level".to_owned() } else { format!("`[{here}]`") };
            let _ = write!(page, "\n## {title}\n\n| key | default | `demo` | `sd3-medium` | meaning |\n|---|---|---|---|---|\n");
        }
        let (default, demo, sd3) = (shown(&defaults, key)?, shown(&demo, key)?, shown(&sd3, key)?);
        let changed = |value: &str| if value == default { String::new() } else { value.to_owned() };
        let _ = writeln!(page, "| `{leaf}` | {default} | {} | {} | {meaning} |", changed(&demo), changed(&sd3));
    }
    Ok(page)
}

/// One value as it is written in the page.
fn shown(config: &Config, key: &str) -> Result<String> {
    let table: toml::Table = toml::from_str(&config.resolved()?).map_err(|e| Error::Config(e.to_string()))?;
    let value = key.split('.').try_fold(toml::Value::Table(table), |value, part| value.get(part).cloned());
    Ok(value.map_or_else(String::new, |value| format!("`{value}`").replace('\n', " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_meaning() {
        let mut described: Vec<_> = MEANINGS.iter().map(|(key, _)| (*key).to_owned()).collect();
        let mut existing = layers::all_keys().unwrap();
        described.sort();
        existing.sort();
        assert_eq!(described, existing);
    }

    #[test]
    fn docs_list_every_key() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
        let page = reference_markdown().unwrap();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(written == page, "docs/configuration.md is stale: run UPDATE_DOCS=1 cargo test docs_list_every_key");
    }
}
