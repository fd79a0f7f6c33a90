use super::*;
use crate::flow::TimestepDistribution;
use crate::ladd::Update;

fn load(sets: &[&str]) -> Result<Config> {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    Config::load(&Sources { sets: &sets, ..Sources::default() })
}

fn from_file(text: &str) -> (tempfile::TempDir, Result<Config>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my.toml");
    std::fs::write(&path, text).unwrap();
    let config = Config::load(&Sources { file: Some(&path), ..Sources::default() });
    (folder, config)
}

fn message(result: Result<Config>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn every_preset_is_valid_and_round_trips() {
    for preset in &PRESETS {
        let config = Config::load(&Sources { preset: Some(preset.name), ..Sources::default() }).unwrap();
        assert_eq!(config.preset, preset.name);
        let text = config.resolved().unwrap();
        let (_folder, again) = from_file(&text);
        assert_eq!(again.unwrap(), config, "{text}");
    }
}

#[test]
fn resolved_numbers_are_written_as_people_write_them() {
    let text = load(&["ladd.student_t.probs=0.7,0.1,0.1,0.1", "distill.ema_decay=0.99"]).unwrap().resolved().unwrap();
    assert!(text.contains("probs = [0.7, 0.1, 0.1, 0.1]"), "{text}");
    assert!(text.contains("ema_decay = 0.99\n"), "{text}");
}

#[test]
fn later_layers_win() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my.toml");
    std::fs::write(&path, "seed = 3\n[distill]\nsteps = 10\nbatch = 8\n[ladd]\nupdate = \"alternating\"\n").unwrap();
    let flags = [Flag { key: "distill.batch", flag: "--batch", value: 16.into() }];
    let sets = ["distill.batch=32".to_owned()];
    let config = Config::load(&Sources { preset: Some("demo-quick"), file: Some(&path), flags: &flags, sets: &sets }).unwrap();
    assert_eq!((config.seed, config.distill.steps, config.distill.batch), (3, 10, 32));
    assert_eq!(config.ladd.update, Update::Alternating);
    assert_eq!(config.synthesize.count, 1024, "from the preset");
    assert_eq!(config.eval.student_steps, [1, 2, 4], "from the defaults");
}

#[test]
fn a_file_may_name_its_preset() {
    let (_folder, config) = from_file("preset = \"sd3.5-medium\"");
    assert_eq!(config.unwrap().model.dual_attention_blocks, 13);
    let (_folder, config) = from_file("preset = \"sd4\"");
    assert!(message(config).contains("there is no preset `sd4`; the presets are demo, "));
}

#[test]
fn set_takes_toml_values_bare_words_and_lists() {
    let config = load(&[
        "teacher.checkpoint=my teacher.safetensors",
        "eval.student_steps=1,2",
        "eval.teacher_steps=[4]",
        "run_dir=2024",
        "optim.student.lr=1",
        "sample.sampler=euler",
        "lora.targets=attention,attn2.to_q",
    ])
    .unwrap();
    assert_eq!(config.teacher.checkpoint, "my teacher.safetensors");
    assert_eq!(config.eval.student_steps, [1, 2]);
    assert_eq!(config.eval.teacher_steps, [4]);
    assert_eq!(config.run_dir, PathBuf::from("2024"));
    assert_eq!(config.optim.student.lr, 1.0);
    assert_eq!(config.sample.sampler, SamplerChoice::Euler);
    assert_eq!(config.lora.targets, ["attention", "attn2.to_q"]);
}

#[test]
fn a_distribution_is_merged_or_replaced() {
    let config = load(&["ladd.renoise_t.mean=0.5"]).unwrap();
    assert_eq!(config.ladd.renoise_t, TimestepDistribution::LogitNormal { mean: 0.5, std: 1.0 });
    let config = load(&["ladd.renoise_t.kind=shifted", "ladd.renoise_t.shift=5"]).unwrap();
    assert_eq!(config.ladd.renoise_t, TimestepDistribution::Shifted { shift: 5.0 });
    let error = message(load(&["ladd.renoise_t.kind=shifted"]));
    assert!(error.contains("ladd.renoise_t") && error.contains("shift"), "{error}");
    let error = message(load(&["ladd.renoise_t.shift=5"]));
    assert!(error.contains("a distribution of kind logit_normal has the keys kind, mean, std"), "{error}");
    let error = message(load(&["ladd.renoise_t.kind=normal"]));
    assert!(error.contains("must be discrete, logit_normal, uniform or shifted"), "{error}");
}

#[test]
fn an_unknown_key_names_file_line_and_suggestion() {
    let (_folder, config) = from_file("seed = 1\n\n[distill]\nsteps = 3\nbacth = 4\n");
    let error = message(config);
    assert!(error.contains("unknown key `distill.bacth` in ") && error.contains("my.toml:5; did you mean `distill.batch`?"), "{error}");
    let (_folder, config) = from_file("[optim.student]\nclipp = 1.0\n");
    assert!(message(config).contains("my.toml:2; did you mean `optim.student.clip`?"));
    let (_folder, config) = from_file("[destill]\nsteps = 3\n");
    assert!(message(config).contains("my.toml:1; did you mean `distill`?"));
    assert!(message(load(&["ladd.guidance=3"])).contains("did you mean `eval.guidance` or `sample.guidance` or `synthesize.guidance`?"));
    assert!(message(load(&["sample.zzzzzzzzzz=3"])).contains("the keys here are "));
}

#[test]
fn a_wrong_type_names_who_set_it() {
    let (_folder, config) = from_file("\n[distill]\nsteps = \"many\"\n");
    let error = message(config);
    assert!(error.contains("distill.steps (set by ") && error.contains("my.toml:3)") && error.contains("many"), "{error}");
    let error = message(load(&["distill.steps=-3"]));
    assert!(error.contains("distill.steps (set by `--set distill.steps=-3`)"), "{error}");
    let error = message(load(&["distill=3"]));
    assert!(error.contains("distill (set by `--set distill=3`)"), "{error}");
}

#[test]
fn broken_toml_names_the_line() {
    let (_folder, config) = from_file("seed = 1\n[distill\nsteps = 3\n");
    assert!(message(config).contains("my.toml:2: "));
    let missing = Config::load(&Sources { file: Some(std::path::Path::new("no/such.toml")), ..Sources::default() });
    assert!(message(missing).contains("cannot read the configuration no/such.toml"));
}

#[test]
fn values_out_of_range_are_refused() {
    for (set, part) in [
        ("distill.accumulate=3", "does not divide"),
        ("distill.batch=0", "must be at least 1"),
        ("distill.ema_decay=1.0", "out of range"),
        ("eval.samples=1", "at least 2"),
        ("eval.student_steps=0,1", "at least 1"),
        ("synthesize.guidance=nan", "out of range"),
        ("ladd.student_t.probs=[0.5,0.5]", "2 numbers for 4 values"),
        ("optim.heads.lr=0", "optim.heads.lr"),
        ("model.depth=0", "model.depth"),
        ("deterministic=sometimes", "deterministic (set by `--set deterministic=sometimes`)"),
        ("data.latent=jpeg", "not one of dct, vae"),
        ("nonsense", "write it as key=value"),
        ("=3", "the key is empty"),
        ("a..b=3", "the key is empty"),
    ] {
        let error = message(load(&[set]));
        assert!(error.contains(part), "{set}: {error}");
        assert!(!error.contains('\n'), "one line: {error}");
    }
}

#[test]
fn tiny_micro_batches_are_warned_about() {
    assert!(load(&[]).unwrap().warnings().is_empty());
    let config = load(&["distill.batch=8", "distill.accumulate=8"]).unwrap();
    assert!(config.warnings()[0].contains("micro-batches of at least 2"));
}

#[test]
fn the_order_of_sums_is_a_setting() {
    assert!(load(&[]).unwrap().deterministic);
    let config = load(&["deterministic=false"]).unwrap();
    assert!(!config.deterministic);
    assert!(config.resolved().unwrap().contains("\ndeterministic = false\n"));
    let (_folder, config) = from_file("deterministic = false\n");
    assert!(!config.unwrap().deterministic);
}
