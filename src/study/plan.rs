//! What a study runs: a TOML list of variations over the configuration. One for the demo is part of the program.
//!
//! ```toml
//! title = "Head width"
//! set = { distill.steps = 100 }                 # of every run
//!
//! [[variation]]
//! name = "width"                                # what --what picks
//! title = "Channels of the heads"
//! draw = "value"                                # or "steps", "sampling"
//! across = "channels"                           # name of the horizontal axis
//!
//! [[variation.run]]
//! name = "16"
//! value = 16
//! set = { ladd.head_width = 16 }
//! ```

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::{Error, Result};

/// The study of the demo.
const DEMO: &str = include_str!("demo.toml");

/// How the runs of a variation are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Draw {
    /// A line for each run: quality against training steps, and against the operations they cost.
    Steps,
    /// Quality at the end against the run's `value`.
    Value,
    /// A line for each run: quality at the end against sampling steps, and against the operations of the training.
    Sampling,
}

/// A study.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// Its title.
    pub title: String,
    /// Settings of every run and every network.
    #[serde(default)]
    pub set: Table,
    /// Networks that `pretrain` trains first, for runs to name.
    #[serde(default, rename = "network")]
    pub networks: Vec<NetworkPlan>,
    /// What is varied.
    #[serde(rename = "variation")]
    pub variations: Vec<Variation>,
}

/// A network to be trained.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPlan {
    /// What runs call it.
    pub name: String,
    /// Its settings.
    #[serde(default)]
    pub set: Table,
}

/// Runs that differ in one thing.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variation {
    /// Its name.
    pub name: String,
    /// A name that several variations may share; `--what` takes it for all of them.
    #[serde(default)]
    pub group: String,
    /// Title of its picture.
    pub title: String,
    /// How it is drawn.
    pub draw: Draw,
    /// Name of the horizontal axis of `value`.
    #[serde(default)]
    pub across: String,
    /// Settings of its runs.
    #[serde(default)]
    pub set: Table,
    /// The runs.
    #[serde(rename = "run")]
    pub runs: Vec<RunPlan>,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunPlan {
    /// Its name in legends and tables.
    pub name: String,
    /// Where it stands on the horizontal axis.
    pub value: Option<f64>,
    /// The network that the student begins as; empty: as the settings say.
    #[serde(default)]
    pub student: String,
    /// The network that judges; empty: as the settings say.
    #[serde(default)]
    pub teacher: String,
    /// The network that draws the latents; empty: the settings' teacher.
    #[serde(default)]
    pub data: String,
    /// Its settings.
    #[serde(default)]
    pub set: Table,
}

impl Study {
    /// The study of the demo, which is part of the program.
    ///
    /// # Errors
    /// Never in a program whose tests pass.
    pub fn demo() -> Result<Self> {
        Self::parse(DEMO, "the built-in study")
    }

    /// Reads a study.
    ///
    /// # Errors
    /// When the file cannot be read or is no study; the message names the line or the part.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read the study", path, e))?;
        Self::parse(&text, &path.display().to_string())
    }

    fn parse(text: &str, name: &str) -> Result<Self> {
        let study: Self = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(1, |span| text.as_bytes().iter().take(span.start).filter(|b| **b == b'\n').count() + 1);
            Error::Usage(format!("{name}:{line}: {}", e.message().lines().next().unwrap_or_default()))
        })?;
        study.check().map_err(|what| Error::Usage(format!("{name}: {what}")))?;
        Ok(study)
    }

    fn check(&self) -> Result<(), String> {
        if self.variations.is_empty() {
            return Err("has no [[variation]]".into());
        }
        unique("network", self.networks.iter().map(|n| n.name.as_str()))?;
        unique("variation", self.variations.iter().map(|v| v.name.as_str()))?;
        for variation in &self.variations {
            let here = format!("variation {:?}", variation.name);
            if variation.runs.is_empty() {
                return Err(format!("{here} has no [[variation.run]]"));
            }
            unique("run", variation.runs.iter().map(|r| r.name.as_str())).map_err(|what| format!("{here}: {what}"))?;
            for run in &variation.runs {
                let here = format!("{here}, run {:?}", run.name);
                if let Some(unknown) = run.networks().find(|name| !self.networks.iter().any(|n| n.name == *name)) {
                    return Err(format!("{here} names the network {unknown:?}, but there is no such [[network]]"));
                }
                if variation.draw == Draw::Value && !run.value.is_some_and(f64::is_finite) {
                    return Err(format!("{here} needs a finite `value`: its variation is drawn against it"));
                }
            }
        }
        Ok(())
    }

    /// The variations whose name or group is one of `what`, all if that is empty.
    ///
    /// # Errors
    /// When there is none of a name.
    pub fn select(&self, what: &[String]) -> Result<Vec<&Variation>> {
        let is = |variation: &Variation, name: &String| variation.name == *name || (variation.group == *name && !name.is_empty());
        if let Some(unknown) = what.iter().find(|name| !self.variations.iter().any(|v| is(v, name))) {
            let mut names: Vec<&str> = Vec::new();
            for variation in &self.variations {
                let name = if variation.group.is_empty() { &variation.name } else { &variation.group };
                if !names.contains(&name.as_str()) {
                    names.push(name);
                }
            }
            return Err(Error::Usage(format!("--what {unknown}: this study varies {}", names.join(", "))));
        }
        Ok(self.variations.iter().filter(|v| what.is_empty() || what.iter().any(|name| is(v, name))).collect())
    }
}

impl RunPlan {
    /// The networks it names.
    pub fn networks(&self) -> impl Iterator<Item = &str> {
        [&self.student, &self.teacher, &self.data].into_iter().map(String::as_str).filter(|name| !name.is_empty())
    }
}

/// Names become parts of file names and must tell things apart.
fn unique<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for name in names {
        let plain = |c: char| c.is_alphanumeric() || " ._=+-".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(format!("the {what} {name:?} needs a name of letters, digits and ._=+- that does not begin with a dot"));
        }
        if !seen.insert(name.to_lowercase()) {
            return Err(format!("there are two {what}s called {name:?}"));
        }
    }
    Ok(())
}

/// A table of settings as `key=value` lines with dotted keys, as `--set` takes them.
pub(crate) fn assignments(table: &Table) -> Vec<String> {
    fn walk(table: &Table, path: &str, lines: &mut Vec<String>) {
        for (key, value) in table {
            let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match value {
                // A distribution is one value.
                Value::Table(inner) if !inner.contains_key("kind") => walk(inner, &full, lines),
                value => lines.push(format!("{full}={value}")),
            }
        }
    }
    let mut lines = Vec::new();
    walk(table, "", &mut lines);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};

    const SMALL: &str = "title = \"t\"\n[[variation]]\nname = \"a\"\ngroup = \"g\"\ntitle = \"A\"\ndraw = \"value\"\n[[variation.run]]\nname = \"one\"\nvalue = 1\n";

    fn error(text: &str) -> String {
        let error = Study::parse(text, "my.toml").unwrap_err().to_string();
        assert!(error.starts_with("my.toml") && !error.contains('\n'), "{error}");
        error
    }

    #[test]
    fn the_built_in_study_is_valid_and_so_are_its_settings() {
        let study = Study::demo().unwrap();
        for variation in &study.variations {
            for run in &variation.runs {
                let sets = [&study.set, &variation.set, &run.set].into_iter().flat_map(assignments).collect::<Vec<_>>();
                Config::load(&Sources { sets: &sets, ..Sources::default() }).unwrap();
            }
        }
        for network in &study.networks {
            let sets = [&study.set, &network.set].into_iter().flat_map(assignments).collect::<Vec<_>>();
            Config::load(&Sources { sets: &sets, ..Sources::default() }).unwrap();
        }
        for what in ["student-size", "teacher-size", "data-size", "data-model", "noise", "methods"] {
            assert!(!study.select(&[what.into()]).unwrap().is_empty(), "{what}");
        }
    }

    #[test]
    fn mistakes_name_their_place() {
        let study = Study::parse(SMALL, "my.toml").unwrap();
        assert_eq!(study.select(&["g".into()]).unwrap().len(), 1);
        assert!(study.select(&["b".into()]).unwrap_err().to_string().contains("--what b: this study varies g"));
        assert!(error("title = \"t\"\n[[variation]\n").starts_with("my.toml:2: "));
        assert!(error(&SMALL.replace("group", "grupo")).contains("my.toml:4: unknown field `grupo`"));
        assert!(error(&SMALL.replace("\"value\"", "\"pie\"")).contains("my.toml:6: "));
        assert!(error(&SMALL.replace("value = 1\n", "")).contains("run \"one\" needs a finite `value`"));
        assert!(error(&format!("{SMALL}teacher = \"huge\"\n")).contains("there is no such [[network]]"));
        assert!(error(&SMALL.replace("\"one\"", "\"../one\"")).contains("needs a name of letters"));
        assert!(error(&format!("{SMALL}[[variation.run]]\nname = \"One\"\nvalue = 2\n")).contains("two runs called \"One\""));
        assert!(error("title = \"t\"\n").contains("variation"));
        assert!(error("title = \"t\"\nvariation = []\n").contains("no [[variation]]"));
    }

    #[test]
    fn settings_become_assignments() {
        let table: Table = toml::from_str("seed = 3\nladd.renoise_t = { kind = \"uniform\" }\ndistill.method = \"lcm\"").unwrap();
        let mut lines = assignments(&table);
        lines.sort();
        assert_eq!(lines, ["distill.method=\"lcm\"", "ladd.renoise_t={ kind = \"uniform\" }", "seed=3"]);
    }
}
