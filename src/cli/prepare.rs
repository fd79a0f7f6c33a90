//! `ladd-fast prepare`: pictures of one's own to latent shards, as `distill` and `pretrain` read them. An interrupted call goes
//! on where it stopped when it is repeated, and gives the same bytes.
//!
//! In order: look for pictures and captions, settle the network the latents are for, encode what is trained on and what is held
//! out, and write what people look at: skipped pictures, captions, a contact sheet.

mod network;
mod writing;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::common::output::many;
use super::common::{Encoders, Globals, Outcome, Stop, flag, interrupt, number, output};
use crate::config::{Config, PrepareConfig};
use crate::data::prepare::{EmojiChoice, Found, Picture, Skipped, Source, captions, find, held_out, names, pair_up};
use crate::data::unique_prompts;
use crate::edit::Task;
use crate::format::write_atomically;
use crate::report::{ContactRow, ContactSheet, draw_contact_sheet, save_png};
use crate::{Error, Result};

use writing::{Set, Written};

/// Folder of the pictures that are kept from training, in that of the others.
pub(super) const HELD_OUT: &str = "held-out";
/// The captions that are trained on, one a line: prompts for `synthesize`.
const CAPTIONS: &str = "captions.txt";
/// What could not be used, a line for each picture.
pub(super) const SKIPPED: &str = "skipped.jsonl";
const CONTACT_SHEET: &str = "buckets.png";

/// Turn pictures with captions into training latents.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast prepare photos --teacher SD3 --out latents      a folder: a.jpg beside a.txt, or metadata.jsonl
  ladd-fast prepare part-*.tar --teacher SD3 --out latents  WebDataset archives, gzipped or not
  ladd-fast prepare photos --out latents --caption-from filename --set prepare.area=4096
  ladd-fast prepare --emoji data/emoji --preset emoji-small --out data/emoji-small
  ladd-fast prepare edits --pairs --teacher SD3 --out latents    a.jpg, what it was made from in a.source.jpg, a.txt
  ladd-fast distill --teacher SD3 --data latents

Without --teacher the latents are for a new network, which `pretrain --data` trains. A call that was interrupted goes on when it
is repeated. Look at buckets.png in the folder, and at skipped.jsonl for what could not be used. docs/data.md has the whole way.")]
pub struct Arguments {
    /// Folders of pictures, or WebDataset archives (.tar, .tar.gz, .tgz).
    #[arg(value_name = "SOURCE", required_unless_present = "emoji")]
    sources: Vec<PathBuf>,
    /// Folder of emoji, from `scripts/get-emoji`.
    #[arg(long, value_name = "FOLDER")]
    emoji: Option<PathBuf>,
    /// Folder for the shards.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// The network that the latents are for: a checkpoint, a folder of diffusers, or `builtin` [default: a new one].
    #[arg(long, value_name = "PATH")]
    teacher: Option<String>,
    /// Most pixels of a picture [default: the size the network was trained for].
    #[arg(long, value_name = "PIXELS")]
    area: Option<u64>,
    /// Skip pictures whose shorter side has fewer pixels.
    #[arg(long, value_name = "PIXELS")]
    min_side: Option<u64>,
    /// What is kept of a picture that is too long.
    #[arg(long, value_enum)]
    crop: Option<CropChoice>,
    /// Colour behind transparent pixels, #rrggbb.
    #[arg(long, value_name = "COLOUR")]
    background: Option<String>,
    /// The caption of pictures that have none beside them.
    #[arg(long, value_enum)]
    caption_from: Option<CaptionChoice>,
    /// Share of the pictures that is kept from training.
    #[arg(long, value_name = "SHARE")]
    hold_out: Option<f64>,
    /// Pairs for editing: every picture has a source, NAME.source.jpg or `source` in metadata.jsonl, and its caption is the
    /// instruction.
    #[arg(long)]
    pairs: bool,
    /// Seed of the choice among several captions.
    #[arg(long, value_name = "N", value_parser = super::common::seed)]
    seed: Option<u64>,
    /// Fail if a source is damaged or a picture cannot be used.
    #[arg(long)]
    strict: bool,
}

/// A way to cut, on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum CropChoice {
    Subject,
    Center,
}

/// Where captions come from, on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum CaptionChoice {
    Filename,
    None,
}

pub(super) fn run(globals: &Globals, arguments: &Arguments) -> Outcome {
    let crop = arguments.crop.map(|crop| match crop {
        CropChoice::Subject => "subject",
        CropChoice::Center => "center",
    });
    let captions = arguments.caption_from.map(|from| match from {
        CaptionChoice::Filename => "filename",
        CaptionChoice::None => "none",
    });
    let config = globals.load(vec![
        number("prepare.area", "--area", arguments.area),
        number("prepare.min_side", "--min-side", arguments.min_side),
        flag("prepare.crop", "--crop", crop),
        flag("prepare.background", "--background", arguments.background.as_deref()),
        flag("prepare.captions", "--caption-from", captions),
        flag("prepare.hold_out", "--hold-out", arguments.hold_out),
        flag("prepare.pairs", "--pairs", arguments.pairs.then_some(true)),
        number("seed", "--seed", arguments.seed),
    ])?;
    let made = prepare(&config, arguments);
    if matches!(made, Err(Stop::Interrupted)) {
        output::note("interrupted; the same command goes on where it stopped");
    }
    made
}

fn prepare(config: &Config, arguments: &Arguments) -> Outcome {
    let sources = sources(&config.prepare, arguments)?;
    output::note("looking for pictures and captions");
    let mut found = find(&sources, &arguments.out)?;
    interrupt::check()?;
    report_damage(&found, arguments.strict)?;
    if config.prepare.pairs {
        pair_up(&mut found, &sources);
    }
    hold_out(&mut found, &sources, config.prepare.hold_out);
    let texts = texts(&found, &sources, &config.prepare, config.seed)?;
    let pictures: Vec<(usize, &Picture)> = found.pictures.iter().enumerate().collect();
    if pictures.is_empty() {
        let (count, first) = (found.skipped.len(), found.skipped.first());
        let (name, reason) = first.map_or(("", ""), |skipped| (skipped.picture.as_str(), skipped.reason.as_str()));
        return Err(Error::Usage(format!("no picture of {count} can be used; the first, {name}, {reason}")).into());
    }
    let (held, trained): (Vec<_>, Vec<_>) = pictures.into_iter().partition(|(_, picture)| picture.held_out);
    let mut target = network::target(config, arguments.teacher.as_deref(), &sources, &trained)?;
    // What samples are is told by the network that they suit: one that edits is trained on pairs.
    let model = &mut target.pipeline.model;
    model.conditioning_channels = if config.prepare.pairs { Task::Edit.conditioning_channels(model.in_channels) } else { 0 };
    let encoders = Encoders::new(&config.encoders, &target.pipeline, arguments.teacher.as_deref().unwrap_or_default());
    let preparation = target.preparation(&config.prepare, found.fingerprint(), encoders.autoencoder_fingerprint()?);
    let set = |pictures, folder, skipped| Set {
        sources: &sources,
        pictures,
        skipped,
        texts: &texts,
        folder,
        encoders: &encoders,
        fitting: &target.fitting,
        preparation: &preparation,
        seed: config.seed,
        shard_size: config.prepare.shard_size,
    };
    let before = found.skipped.len();
    let trained = set(trained, arguments.out.clone(), before).write("pictures")?;
    let before = before + trained.skipped.len();
    let held = if held.is_empty() { Written::default() } else { set(held, arguments.out.join(HELD_OUT), before).write("held out")? };
    let skipped: Vec<&Skipped> = found.skipped.iter().chain(&trained.skipped).chain(&held.skipped).collect();
    write_lists(&arguments.out, &trained, &skipped)?;
    save_png(&draw_contact_sheet(&contact_sheet(&sources, &trained, held.count(), skipped.len())), &arguments.out.join(CONTACT_SHEET))?;
    conclude(&arguments.out, &trained, held.count(), &skipped, arguments.strict)
}

fn sources(config: &PrepareConfig, arguments: &Arguments) -> Result<Vec<Source>> {
    let choice =
        EmojiChoice { styles: config.emoji_styles.clone(), categories: config.emoji_categories.clone(), hold_out: config.hold_out };
    let emoji = arguments.emoji.iter().map(|folder| Ok(Source::Emoji(folder.clone(), choice.clone())));
    arguments.sources.iter().map(|path| Source::at(path)).chain(emoji).collect()
}

fn report_damage(found: &Found, strict: bool) -> Result<()> {
    match found.damaged.first() {
        Some(damage) if strict => Err(Error::Usage(format!("{damage}; without --strict what is whole is used"))),
        _ => {
            found.damaged.iter().for_each(|damage| tracing::warn!("{damage}; what is whole is used"));
            Ok(())
        }
    }
}

/// Chooses the pictures that are kept from training; emoji were chosen when they were found.
fn hold_out(found: &mut Found, sources: &[Source], share: f64) {
    let plain = |picture: &Picture| !matches!(sources.get(picture.source), Some(Source::Emoji(..)));
    for picture in found.pictures.iter_mut().filter(|picture| plain(picture)) {
        picture.held_out = held_out(&picture.name, share);
    }
}

/// The caption of every picture.
fn texts(found: &Found, sources: &[Source], config: &PrepareConfig, seed: u64) -> Result<Vec<String>> {
    let without = found.pictures.iter().filter(|picture| picture.captions.is_empty());
    if let (Some(first), "files") = (without.clone().next(), config.captions.as_str()) {
        let place = sources.get(first.source).map(|source| source.path().join(&first.name)).unwrap_or_default();
        return Err(Error::file(
            place,
            format!(
                "has no caption, as have {} of {}: write it beside the picture (.txt, or a line in metadata.jsonl), or choose \
                 --caption-from filename or --caption-from none",
                without.count(),
                many(found.pictures.len(), "picture")
            ),
        ));
    }
    let from_name = |name: &str| names::key(name).rsplit('/').next().unwrap_or_default().replace(['_', '-'], " ");
    let text = |picture: &Picture| match captions::choose(&picture.captions, seed, &picture.name) {
        Some(text) => text.to_owned(),
        None if config.captions == "filename" => from_name(&picture.name).split_whitespace().collect::<Vec<_>>().join(" "),
        None => String::new(),
    };
    Ok(found.pictures.iter().map(text).collect())
}

/// The captions that are trained on, and what could not be used.
fn write_lists(folder: &Path, trained: &Written, skipped: &[&Skipped]) -> Result<()> {
    let (captions, _) = unique_prompts(&trained.texts);
    let lines = captions.iter().filter(|caption| !caption.is_empty()).fold(String::new(), |lines, caption| lines + caption + "\n");
    write_atomically(&folder.join(CAPTIONS), |out| out.write_all(lines.as_bytes()))?;
    write_atomically(&folder.join(SKIPPED), |out| {
        skipped.iter().try_for_each(|entry| {
            serde_json::to_writer(&mut *out, entry)?;
            out.write_all(b"\n")
        })
    })
}

fn contact_sheet(sources: &[Source], trained: &Written, held: usize, skipped: usize) -> ContactSheet {
    let mut rows: Vec<_> = trained.buckets.iter().collect();
    rows.sort_by_key(|(size, bucket)| (std::cmp::Reverse(bucket.count), **size));
    let row = |((width, height), bucket): (&(u32, u32), &writing::Bucket)| ContactRow {
        label: format!("{width} x {height}"),
        count: bucket.count,
        pictures: bucket.pictures.values().cloned().collect(),
    };
    let names: Vec<_> = sources.iter().map(|source| source.path().display().to_string()).collect();
    ContactSheet {
        title: format!("{} in {}", many(trained.count(), "picture"), many(rows.len(), "size")),
        subtitle: format!("{held} more held out, {skipped} skipped; from {}", names.join(", ")),
        rows: rows.into_iter().map(row).collect(),
    }
}

/// Says what there is, and fails where nothing may be missing.
fn conclude(folder: &Path, trained: &Written, held: usize, skipped: &[&Skipped], strict: bool) -> Outcome {
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    skipped.iter().for_each(|entry| *reasons.entry(&entry.reason).or_default() += 1);
    let place = folder.display();
    let list = folder.join(SKIPPED);
    let (pictures, sizes) = (many(trained.count(), "picture"), many(trained.buckets.len(), "size"));
    output::result(&format!("{pictures} in {sizes} in {place}, {held} held out"));
    if let Some((reason, count)) = reasons.iter().max_by_key(|(_, count)| **count) {
        let pictures = many(skipped.len(), "picture");
        let text = format!("{pictures} could not be used, see {}; most often ({count}): {reason}", list.display());
        if strict {
            return Err(Error::Usage(format!("{text}; without --strict the rest is enough")).into());
        }
        tracing::warn!("{text}");
    }
    output::result(&format!("look at {}", folder.join(CONTACT_SHEET).display()));
    Ok(())
}
