//! Laying defaults, preset, file, flags and `--set` over each other, and saying where a wrong value came from.
//!
//! Every layer is a TOML table that is merged key by key into the one below. The built-in defaults hold every key, so
//! they are the schema: a key that is not in them is unknown. A timestep distribution is the one place where the valid
//! keys depend on a value (`kind`); naming another kind replaces the whole distribution.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::{Config, preset};
use crate::{Error, Result};

/// A command-line flag that stands for a configuration key: `--steps 100` is `distill.steps = 100`.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The key, dotted.
    pub key: &'static str,
    /// The flag as the user wrote it, for messages.
    pub flag: &'static str,
    /// The value.
    pub value: Value,
}

/// Where a configuration is read from. Later fields win.
#[derive(Clone, Debug, Default)]
pub struct Sources<'a> {
    /// `--preset`; otherwise the file's `preset`, otherwise `demo`.
    pub preset: Option<&'a str>,
    /// `--config FILE`.
    pub file: Option<&'a Path>,
    /// Command-line flags with a key of their own.
    pub flags: &'a [Flag],
    /// `--set key=value`, with dotted keys and TOML values; a bare word is a string.
    pub sets: &'a [String],
}

/// Who set a value.
#[derive(Clone, Debug)]
enum Origin {
    Preset(&'static str),
    File(PathBuf, usize),
    Argument(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Preset(name) => write!(f, "preset `{name}`"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Argument(text) => write!(f, "`{text}`"),
        }
    }
}

/// The values so far, and who set them (by dotted key).
struct Layers {
    schema: Table,
    merged: Table,
    origins: BTreeMap<String, Origin>,
}

/// Reads all layers and turns them into a [`Config`]; the parts' own checks come after.
pub(super) fn load(sources: &Sources<'_>) -> Result<Config> {
    let read = |path| std::fs::read_to_string(path).map_err(|e| Error::io("read the configuration", path, e));
    let file = sources.file.map(|path| Ok::<_, Error>((path, read(path)?))).transpose()?;
    lay_over(sources, file)
}

/// The same with the file's text, where there is one; its name is for messages.
pub(super) fn lay_over(sources: &Sources<'_>, file: Option<(&Path, String)>) -> Result<Config> {
    let file_table = match &file {
        Some((path, text)) => Some(parse_file(path, text)?),
        None => None,
    };
    let in_file = file_table.as_ref().and_then(|(table, _)| table.get("preset")).and_then(Value::as_str);
    let chosen = preset(sources.preset.or(in_file).unwrap_or(super::PRESETS[0].name))?;

    let mut layers = Layers::new()?;
    layers.preset(chosen)?;
    if let (Some((path, _)), Some((table, lines))) = (&file, file_table.clone()) {
        layers.lay(table, |key| Origin::File(path.to_path_buf(), lines.get(key).copied().unwrap_or(1)))?;
    }
    for flag in sources.flags {
        layers.lay(nest(flag.key, flag.value.clone()), |_| Origin::Argument(flag.flag.into()))?;
    }
    for text in sources.sets {
        layers.assignment(text)?;
    }
    layers.merged.insert("preset".into(), Value::String(chosen.name.into()));
    layers.finish()
}

impl Layers {
    fn new() -> Result<Self> {
        let schema: Table =
            toml::from_str(&Config::default().resolved()?).map_err(|e| Error::Config(format!("the built-in defaults: {e}")))?;
        Ok(Self { merged: schema.clone(), schema, origins: BTreeMap::new() })
    }

    fn preset(&mut self, preset: &'static super::Preset) -> Result<()> {
        let table: Table = toml::from_str(preset.text).map_err(|e| Error::Config(format!("preset `{}`: {e}", preset.name)))?;
        self.lay(table, |_| Origin::Preset(preset.name))
    }

    /// `--set key=value`.
    fn assignment(&mut self, text: &str) -> Result<()> {
        let Some((key, value)) = text.split_once('=').map(|(k, v)| (k.trim(), v.trim())) else {
            return Err(Error::Config(format!("--set {text}: write it as key=value, as in --set distill.steps=100")));
        };
        if key.is_empty() || key.split('.').any(str::is_empty) {
            return Err(Error::Config(format!("--set {text}: the key is empty; write it as in --set distill.steps=100")));
        }
        let value = argument_value(value, lookup(&self.schema, key));
        self.lay(nest(key, value), |_| Origin::Argument(format!("--set {text}")))
    }

    fn lay(&mut self, table: Table, origin: impl Fn(&str) -> Origin) -> Result<()> {
        merge(&mut self.merged, table, "", &self.schema, &mut self.origins, &origin)
    }

    fn finish(self) -> Result<Config> {
        serde_path_to_error::deserialize(Value::Table(self.merged)).map_err(|e| {
            let key = e.path().to_string();
            let cause = e.into_inner().to_string();
            let cause = cause.lines().next().unwrap_or_default().trim().to_owned();
            let origin = nearest_origin(&self.origins, &key).map_or_else(String::new, |o| format!(" (set by {o})"));
            Error::Config(format!("{key}{origin}: {cause}"))
        })
    }
}

/// Merges `layer` into `base`; `path` is the dotted prefix of both, `schema` the defaults at that place.
fn merge(
    base: &mut Table,
    layer: Table,
    path: &str,
    schema: &Table,
    origins: &mut BTreeMap<String, Origin>,
    origin: &impl Fn(&str) -> Origin,
) -> Result<()> {
    for (key, value) in layer {
        let full = join(path, &key);
        let Some(known) = schema.get(&key) else {
            return Err(unknown_key(&full, schema, path, &origin(&full)));
        };
        match (value, known) {
            (Value::Table(layer), Value::Table(schema)) => {
                let Some(Value::Table(base)) = base.get_mut(&key) else { continue };
                if schema.contains_key("kind") {
                    merge_distribution(base, layer, &full, origins, origin)?;
                } else {
                    merge(base, layer, &full, schema, origins, origin)?;
                }
            }
            (value, _) => {
                origins.insert(full, origin(&join(path, &key)));
                base.insert(key, value);
            }
        }
    }
    Ok(())
}

/// A timestep distribution: the same kind is merged, another kind replaces it.
fn merge_distribution(
    base: &mut Table,
    layer: Table,
    path: &str,
    origins: &mut BTreeMap<String, Origin>,
    origin: &impl Fn(&str) -> Origin,
) -> Result<()> {
    let kind = layer.get("kind").or_else(|| base.get("kind")).and_then(Value::as_str).unwrap_or_default().to_owned();
    if layer.contains_key("kind") && base.get("kind").and_then(Value::as_str) != Some(&kind) {
        base.clear();
    }
    let keys: &[&str] = match kind.as_str() {
        "discrete" => &["kind", "values", "probs", "warmup_probs", "warmup_steps"],
        "logit_normal" => &["kind", "mean", "std"],
        "uniform" => &["kind"],
        "shifted" => &["kind", "shift"],
        other => {
            let place = origin(&join(path, "kind"));
            return Err(Error::Config(format!(
                "{path}.kind = \"{other}\" in {place}: it must be discrete, logit_normal, uniform or shifted"
            )));
        }
    };
    for (key, value) in layer {
        let full = join(path, &key);
        if !keys.contains(&key.as_str()) {
            let place = origin(&full);
            return Err(Error::Config(format!(
                "unknown key `{full}` in {place}: a distribution of kind {kind} has the keys {}",
                keys.join(", ")
            )));
        }
        origins.insert(full.clone(), origin(&full));
        base.insert(key, value);
    }
    Ok(())
}

fn unknown_key(full: &str, schema: &Table, path: &str, origin: &Origin) -> Error {
    let place = match origin {
        Origin::File(..) => format!("in {origin}"),
        _ => format!("from {origin}"),
    };
    let hint = match suggestions(full, schema, path).as_slice() {
        [] => format!("the keys here are {}", schema.keys().map(String::as_str).collect::<Vec<_>>().join(", ")),
        keys => format!("did you mean {}?", keys.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(" or ")),
    };
    Error::Config(format!("unknown key `{full}` {place}; {hint}"))
}

/// The valid keys that `full` may have meant: a near spelling in the same section, or the same word in other sections.
fn suggestions(full: &str, section: &Table, path: &str) -> Vec<String> {
    let leaf = full.rsplit('.').next().unwrap_or(full);
    let near = |a: &str, b: &str| strsim::damerau_levenshtein(a, b) <= (a.len() / 3).clamp(1, 3) || (a.len() > 3 && b.starts_with(a));
    let sibling = section.keys().filter(|k| near(leaf, k)).min_by_key(|k| strsim::damerau_levenshtein(leaf, k));
    if let Some(key) = sibling {
        return vec![join(path, key)];
    }
    let all = all_keys().unwrap_or_default();
    let same_word: Vec<_> = all.iter().filter(|k| k.rsplit('.').next() == Some(leaf)).cloned().collect();
    if same_word.is_empty() { all.into_iter().find(|k| near(full, k)).into_iter().collect() } else { same_word }
}

/// Every dotted key of the configuration, in file order of the sections; a timestep distribution counts as one.
pub(super) fn all_keys() -> Result<Vec<String>> {
    fn walk(table: &Table, path: &str, keys: &mut Vec<String>) {
        for (key, value) in table {
            match value {
                Value::Table(inner) if !inner.contains_key("kind") => walk(inner, &join(path, key), keys),
                _ => keys.push(join(path, key)),
            }
        }
    }
    let mut keys = Vec::new();
    walk(&Layers::new()?.schema, "", &mut keys);
    Ok(keys)
}

/// Parses a file into its table and the line of every dotted key.
fn parse_file(path: &Path, text: &str) -> Result<(Table, BTreeMap<String, usize>)> {
    let syntax = |e: &toml::de::Error| {
        let line = e.span().map_or(1, |span| line_of(text, span.start));
        Error::Config(format!("{}:{line}: {}", path.display(), e.message()))
    };
    let spanned = DeTable::parse(text).map_err(|e| syntax(&e))?;
    let mut lines = BTreeMap::new();
    collect_lines(spanned.get_ref(), "", text, &mut lines);
    let table = Table::deserialize(toml::Deserializer::from(spanned)).map_err(|e| syntax(&e))?;
    Ok((table, lines))
}

fn collect_lines(table: &DeTable<'_>, path: &str, text: &str, lines: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let full = join(path, key.get_ref());
        lines.insert(full.clone(), line_of(text, key.span().start));
        if let DeValue::Table(inner) = value.get_ref() {
            collect_lines(inner, &full, text, lines);
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count() + 1
}

/// The value of `--set`: TOML where it parses, otherwise a string; a list may be written `1,2,4` or `one,two`.
fn argument_value(text: &str, schema: Option<&Value>) -> Value {
    let parse = |text: &str| toml::from_str::<Table>(&format!("value = {text}")).ok().and_then(|mut t| t.remove("value"));
    let text_value = || Value::String(text.to_owned());
    let words = || Value::Array(text.split(',').map(|word| Value::String(word.trim().to_owned())).collect());
    match (parse(text), schema) {
        (Some(value @ Value::String(_)), _) => value,
        (_, Some(Value::String(_))) => text_value(),
        (Some(value @ Value::Array(_)), _) => value,
        (_, Some(Value::Array(_))) => parse(&format!("[{text}]")).unwrap_or_else(words),
        (parsed, _) => parsed.unwrap_or_else(text_value),
    }
}

/// `a.b.c = value` as nested tables.
fn nest(key: &str, value: Value) -> Table {
    let mut parts = key.rsplit('.');
    let mut table = Table::new();
    table.insert(parts.next().unwrap_or(key).to_owned(), value);
    parts.fold(table, |inner, part| Table::from_iter([(part.to_owned(), Value::Table(inner))]))
}

fn lookup<'t>(table: &'t Table, key: &str) -> Option<&'t Value> {
    let mut parts = key.split('.');
    let first = table.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part))
}

/// Who set `key`, or the nearest table around it, or something inside it.
fn nearest_origin<'o>(origins: &'o BTreeMap<String, Origin>, key: &str) -> Option<&'o Origin> {
    let mut prefix = key;
    loop {
        if let Some(origin) = origins.get(prefix) {
            return Some(origin);
        }
        match prefix.rfind(['.', '[']) {
            Some(end) => prefix = &prefix[..end],
            None => break,
        }
    }
    let inside = format!("{key}.");
    origins.range(inside.clone()..).take_while(|(k, _)| k.starts_with(&inside)).map(|(_, o)| o).last()
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
