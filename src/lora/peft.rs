//! PEFT's `LoraConfig` as files carry it: in `adapter_config.json` beside PEFT's weights, and in the metadata of diffusers'
//! (key `lora_adapter_metadata`, every key prefixed by `transformer.`). It decides each adapter's scale.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Adapter, Lora};
use crate::{Error, Result};

/// Metadata key under which diffusers stores the settings.
pub const METADATA: &str = "lora_adapter_metadata";
/// PEFT's file of settings.
pub const CONFIG: &str = "adapter_config.json";
const PREFIX: &str = "transformer.";

/// The settings that matter to the weights.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct PeftConfig {
    peft_type: Option<String>,
    r: usize,
    lora_alpha: f64,
    rank_pattern: BTreeMap<String, usize>,
    alpha_pattern: BTreeMap<String, f64>,
    use_rslora: bool,
    use_dora: bool,
    fan_in_fan_out: bool,
    lora_bias: bool,
    bias: String,
}

impl Default for PeftConfig {
    fn default() -> Self {
        Self {
            peft_type: None,
            r: 8,
            lora_alpha: 8.0,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            use_rslora: false,
            use_dora: false,
            fan_in_fan_out: false,
            lora_bias: false,
            bias: "none".into(),
        }
    }
}

impl PeftConfig {
    /// Reads `adapter_config.json`.
    ///
    /// # Errors
    /// When it is missing, damaged, or describes something else than plain LoRA.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?;
        Self::parse(path, &text, |config| config)
    }

    /// Reads the metadata of diffusers' files; `None` where it says nothing about the transformer.
    ///
    /// # Errors
    /// When it is damaged, or describes something else than plain LoRA.
    pub fn of_metadata(path: &Path, text: &str) -> Result<Option<Self>> {
        let about = Self::json(path, text)?;
        if !about.keys().any(|key| key.starts_with(PREFIX)) {
            return Ok(None);
        }
        let ours =
            |about: Map<String, Value>| about.into_iter().filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?.to_owned(), value)));
        Self::parse(path, text, |about| ours(about).collect()).map(Some)
    }

    fn json(path: &Path, text: &str) -> Result<Map<String, Value>> {
        serde_json::from_str(text).map_err(|error| Error::file(path, format!("holds damaged settings of adapters ({error})")))
    }

    fn parse(path: &Path, text: &str, pick: impl FnOnce(Map<String, Value>) -> Map<String, Value>) -> Result<Self> {
        // An absent setting is null, in what some versions write.
        let mut about = pick(Self::json(path, text)?);
        about.retain(|_, value| !value.is_null());
        let config: Self = serde_json::from_value(Value::Object(about))
            .map_err(|error| Error::file(path, format!("holds settings of adapters that cannot be read ({error})")))?;
        config.check(path)?;
        Ok(config)
    }

    /// Refuses what would be merged wrongly.
    fn check(&self, path: &Path) -> Result<()> {
        let refused = [
            ("peft_type", self.peft_type.as_ref().is_some_and(|kind| kind != "LORA")),
            ("use_dora", self.use_dora),
            ("fan_in_fan_out", self.fan_in_fan_out),
            ("lora_bias", self.lora_bias),
            ("bias", self.bias != "none"),
        ];
        if let Some((key, _)) = refused.iter().find(|(_, wrong)| *wrong) {
            return Err(Error::file(path, format!("sets `{key}` to something else than plain LoRA has: such adapters cannot be read")));
        }
        let patterns = self.rank_pattern.keys().chain(self.alpha_pattern.keys());
        if let Some(pattern) = patterns.into_iter().find(|pattern| pattern.contains(['*', '+', '|', '(', '[', '\\', '$', '?'])) {
            return Err(Error::file(
                path,
                format!("has the regular expression `{pattern}` in a pattern: only names of modules can be read"),
            ));
        }
        if self.r == 0 || !self.lora_alpha.is_finite() {
            return Err(Error::file(path, format!("has rank {} and alpha {}: it is damaged", self.r, self.lora_alpha)));
        }
        Ok(())
    }

    /// The scale of a module's adapter of rank `rank`.
    ///
    /// # Errors
    /// When another rank is announced.
    pub fn scale(&self, path: &Path, module: &str, rank: usize) -> Result<f32> {
        let announced = of_pattern(&self.rank_pattern, module).unwrap_or(self.r);
        if announced != rank {
            return Err(Error::file(path, format!("holds an adapter of rank {rank} for `{module}`, its settings say {announced}")));
        }
        let alpha = of_pattern(&self.alpha_pattern, module).unwrap_or(self.lora_alpha);
        let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok((alpha / divisor) as f32)
    }
}

/// PEFT's rule: the first pattern that is the module's name or the end of it after a dot; with `^` only the whole name.
fn of_pattern<T: Copy>(patterns: &BTreeMap<String, T>, module: &str) -> Option<T> {
    let matches = |pattern: &str| match pattern.strip_prefix('^') {
        Some(whole) => whole.split(".lora_B.").next() == Some(module),
        None => module.strip_suffix(pattern).is_some_and(|start| start.is_empty() || start.ends_with('.')),
    };
    patterns.iter().find(|(pattern, _)| matches(pattern)).map(|(_, value)| *value)
}

/// The settings to write for adapters whose scale is 1: `alpha` equals the rank everywhere.
pub fn settings(lora: &Lora) -> Map<String, Value> {
    let mut count = BTreeMap::<usize, usize>::new();
    lora.adapters.values().for_each(|adapter| *count.entry(adapter.rank).or_default() += 1);
    let usual = count.into_iter().max_by_key(|(rank, count)| (*count, *rank)).map_or(1, |(rank, _)| rank);
    let other = |(module, adapter): (&String, &Adapter)| (adapter.rank != usual).then(|| (format!("^{module}"), json!(adapter.rank)));
    let others: Map<String, Value> = lora.adapters.iter().filter_map(other).collect();
    let about = json!({
        "alpha_pattern": others,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "lora_alpha": usual,
        "lora_bias": false,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": usual,
        "rank_pattern": others,
        "target_modules": lora.adapters.keys().collect::<Vec<_>>(),
        "task_type": null,
        "use_dora": false,
        "use_rslora": false,
    });
    about.as_object().cloned().unwrap_or_default()
}

/// The same as diffusers writes it into the metadata.
pub fn metadata(lora: &Lora) -> String {
    let prefixed: Map<String, Value> = settings(lora).into_iter().map(|(key, value)| (format!("{PREFIX}{key}"), value)).collect();
    format!("{:#}", Value::Object(prefixed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PeftConfig> {
        PeftConfig::parse(Path::new("x.json"), text, |config| config)
    }

    #[test]
    fn scales_follow_patterns_and_roots() {
        let text = r#"{"peft_type":"LORA","r":4,"lora_alpha":8,"rank_pattern":{"^a.to_q":16,"to_k":2},"alpha_pattern":{"a.to_q":4},"bias":null,"more":[1]}"#;
        let config = parse(text).unwrap();
        let scale = |module, rank| config.scale(Path::new("x"), module, rank);
        assert_eq!(scale("a.to_v", 4).unwrap(), 2.0);
        assert_eq!(scale("a.to_q", 16).unwrap(), 0.25);
        assert_eq!(scale("b.to_k", 2).unwrap(), 4.0);
        assert!(scale("b.to_k", 4).unwrap_err().to_string().contains("rank 4 for `b.to_k`, its settings say 2"));
        assert!(scale("b.a.to_q", 16).is_err(), "the rank's pattern is anchored");
        let config = parse(r#"{"r":4,"lora_alpha":8,"use_rslora":true}"#).unwrap();
        assert_eq!(config.scale(Path::new("x"), "m", 4).unwrap(), 4.0);
    }

    #[test]
    fn what_is_no_plain_lora_is_refused() {
        for (text, part) in [
            (r#"{"use_dora":true}"#, "`use_dora`"),
            (r#"{"peft_type":"LOKR"}"#, "`peft_type`"),
            (r#"{"bias":"all"}"#, "`bias`"),
            (r#"{"rank_pattern":{"blocks.[0-9].x":3}}"#, "regular expression `blocks.[0-9].x`"),
            (r#"{"r":"many"}"#, "cannot be read"),
            (r#"{"r":0}"#, "rank 0"),
            ("{", "damaged settings"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("x.json"), "{error}");
        }
    }

    #[test]
    fn metadata_of_other_parts_says_nothing() {
        let of = |text: &str| PeftConfig::of_metadata(Path::new("x"), text).unwrap();
        assert!(of(r#"{"text_encoder.r": 4}"#).is_none());
        assert_eq!(of(r#"{"transformer.r": 4, "text_encoder.r": 9}"#).unwrap().r, 4);
    }
}
