//! The command line, from outside: help, mistakes, and whole runs with a tiny network.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use ladd_fast::device::cpu::Cpu;
use ladd_fast::format::{Checkpoint, Dtype, Pipeline, Role, Tensor};
use ladd_fast::model::mmdit::{POS_EMBED, sinusoidal_grid};
use ladd_fast::model::{Mmdit, ModelConfig};
use ladd_fast::text::TextConfig;
use ladd_fast::train::initial_weights;
use ladd_fast::vae::CodecConfig;
use tempfile::TempDir;

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ladd-fast"));
    command.args(arguments).env_remove("RUST_LOG");
    command
}

pub fn run(arguments: &[&str]) -> Output {
    program(arguments).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must succeed, and returns its standard output.
pub fn succeed(arguments: &[&str]) -> String {
    succeed_in(Path::new("."), arguments)
}

/// The same in a folder of its own, for names that are relative to it.
pub fn succeed_in(folder: &Path, arguments: &[&str]) -> String {
    let output = program(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Runs a command that must fail as the user's mistakes do: exit code 2, one line on standard error.
pub fn refuse(arguments: &[&str]) -> String {
    let output = run(arguments);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    let lines: Vec<_> = message.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!((lines.len(), message.lines().last()), (1, lines.first().copied()), "{arguments:?}: {message}");
    lines[0].to_owned()
}

#[test]
fn help_shows_examples() {
    for command in ["distill", "sample", "edit", "inpaint", "eval", "export", "synthesize", "prepare", "pretrain", "study", "lora", "info"]
    {
        assert!(succeed(&[command, "--help"]).contains("Examples:\n  "), "{command}");
    }
    assert!(succeed(&["--help"]).contains("ladd-fast distill"));
    assert!(succeed(&["--version"]).starts_with("ladd-fast "));
    assert_eq!(run(&[]).status.code(), Some(2));
}

#[test]
fn mistakes_in_the_arguments_are_one_line() {
    assert!(refuse(&["destill"]).contains("distill"));
    assert!(refuse(&["distill", "--stepz", "3"]).contains("--stepz"));
    assert!(refuse(&["distill", "--steps", "many"]).contains("many"));
    assert!(refuse(&["distill", "--resume"]).contains("--run"));
    assert!(refuse(&["sample"]).contains("PROMPT"));
    assert!(refuse(&["info", "-v", "-q"]).contains("cannot be used with"));
}

#[test]
fn mistakes_in_the_settings_name_their_place() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("my.toml");
    std::fs::write(&file, "seed = 1\n[distill]\nstepps = 3\n").unwrap();
    let file = file.to_str().unwrap();
    assert!(refuse(&["info", "--config", file]).contains("my.toml:3; did you mean `distill.steps`?"));
    assert!(refuse(&["info", "--config", "no/such.toml"]).contains("no/such.toml"));
    assert!(refuse(&["info", "--preset", "huge"]).contains("the presets are demo"));
    assert!(refuse(&["info", "--set", "distill.batch=0"]).contains("distill.batch = 0"));
    assert!(refuse(&["distill", "--steps", "0"]).contains("distill.steps = 0"));
    assert!(refuse(&["distill", "--preset", "sd3-medium"]).contains("--teacher"));
}

#[test]
fn missing_and_damaged_files_are_named() {
    let folder = TempDir::new().unwrap();
    let damaged = folder.path().join("damaged.safetensors");
    std::fs::write(&damaged, b"not a network").unwrap();
    let (empty, damaged) = (folder.path().to_str().unwrap(), damaged.to_str().unwrap());
    assert!(refuse(&["sample", "--network", "no/such.safetensors", "bag"]).contains("no/such.safetensors"));
    assert!(refuse(&["eval", "--network", damaged]).contains("damaged.safetensors"));
    assert!(refuse(&["info", "no/such"]).contains("no/such: there is nothing of that name"));
    assert!(refuse(&["info", "no/such", "--verify"]).contains("no/such: there is nothing of that name"));
    assert!(refuse(&["pretrain", "--images", empty]).contains("get-demo-data"));
    assert!(refuse(&["distill", "--run", empty, "--resume"]).contains("no run folder"));
    assert!(refuse(&["distill", "--run", empty, "--teacher", TEACHER.path()]).contains("exists already"));
    assert!(refuse(&["distill", "--run", &format!("{empty}/new"), "--teacher", TEACHER.path(), "--data", empty]).contains("manifest.json"));
}

#[test]
fn info_describes_what_it_is_given() {
    let machine = succeed(&["info", "--threads", "1"]);
    assert!(machine.contains("demo-quick") && machine.contains("threads      1"), "{machine}");
    let network = succeed(&["info", TEACHER.path()]);
    assert!(network.contains("role         teacher") && network.contains("1 block, 2 heads of 8"), "{network}");
    assert!(network.contains("task         draws from prompts alone"), "{network}");
}

/// Prompts that make the same name, and calls that are repeated, number on; what is no folder is noticed before anything is drawn.
#[test]
fn no_picture_is_overwritten() {
    let folder = TempDir::new().unwrap();
    let sample = |more: &[&str]| {
        succeed_in(folder.path(), &[&["sample", "--network", TEACHER.path(), "--width", "16", "--height", "16", "--steps"], more].concat())
    };
    let long = "a".repeat(48);
    let arguments = ["1", "bag", "bag", "a b", "a-b", &format!("{long}1"), &format!("{long}2")];
    let said = sample(&arguments);
    assert!(said.contains("6 images in samples, all together in samples/grid.png"), "{said}");
    let names = || {
        let mut names: Vec<_> =
            std::fs::read_dir(folder.path().join("samples")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let long = |number: u32| format!("{long}-seed0-{number:02}.png");
    let first = ["a-b-seed0-00.png", "a-b-seed0-01.png", &long(0), &long(1), "bag-seed0-00.png", "bag-seed0-01.png", "grid.png"];
    assert_eq!(names(), first);
    let before = bytes(&folder.path().join("samples"), "bag-seed0-00.png");
    let said = sample(&["2", "bag"]);
    assert!(said.contains("1 image in samples, all together in samples/grid-00.png"), "{said}");
    assert_eq!(names().len(), first.len() + 2);
    assert_eq!(before, bytes(&folder.path().join("samples"), "bag-seed0-00.png"));
    assert!(before != bytes(&folder.path().join("samples"), "bag-seed0-02.png"), "another number of steps");

    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = run(&["sample", "--network", TEACHER.path(), "--steps", "1", "--out", file.to_str().unwrap(), "bag"]);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(message.contains("is a file: name a folder") && !message.contains("sampling"), "{message}");
}

/// A full disk behind standard output is an error, a reader that went away is none.
#[cfg(target_os = "linux")]
#[test]
fn results_that_cannot_be_written_are_an_error() {
    use std::process::Stdio;
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    for arguments in [&["info"][..], &["info", TEACHER.path()], &["--help"], &["--version"]] {
        let output = program(arguments).stdout(full()).output().unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        assert!(message.starts_with("error: standard output cannot be written") && message.lines().count() == 1, "{message}");
        let mut child = program(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn devices_that_are_not_there_are_explained() {
    assert!(refuse(&["info", "--device", "gpu"]).contains("device = \"gpu\" must be auto, cpu, cuda or cuda:N"));
    let missing = refuse(&["sample", "--network", TEACHER.path(), "--device", "cuda:99", "dress"]);
    assert!(missing.contains("is not available") && missing.contains("--device cpu"), "{missing}");
}

/// A teacher small enough for tests: untrained, but it draws images of the demo's size.
pub struct Teacher {
    _folder: TempDir,
    path: PathBuf,
}

impl Teacher {
    pub fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

pub static TEACHER: LazyLock<Teacher> = LazyLock::new(|| {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("teacher.safetensors");
    let model = ModelConfig {
        depth: 1,
        heads: 2,
        head_dim: 8,
        in_channels: 16,
        patch: 2,
        context_dim: 8,
        pooled_dim: 8,
        pos_embed_max: 4,
        qk_norm: true,
        dual_attention_blocks: 0,
        conditioning_channels: 0,
    };
    let grid = sinusoidal_grid(&model);
    let network = Mmdit::new(&Cpu::<f32>::new(), model.clone(), &grid).unwrap();
    let mut weights = initial_weights(&network, 5);
    let noise = (0..weights.len()).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.05); // so that no layer is zero
    weights.iter_mut().zip(noise).for_each(|(w, n)| *w += n);
    let arena = &network.layout().arena;
    let named = arena.scatter(&weights).map(|(e, data)| (e.name.clone(), Tensor { shape: e.shape.clone(), data: data.to_vec() }));
    let mut tensors: ladd_fast::format::Tensors = named.collect();
    tensors.insert(POS_EMBED.into(), Tensor { shape: vec![1, 16, 16], data: grid });
    let codec = CodecConfig::Dct { block: 4, channels: 1, mean: vec![0.0; 16], std: vec![1.0; 16] };
    let text = TextConfig::Words { dim: 8, tokens: 2 };
    let pipeline = Pipeline { model, codec, text, shift: 1.0, spacing: Default::default(), role: Role::Teacher, notes: Default::default() };
    Checkpoint { pipeline, tensors }.save(&path, Dtype::F32).unwrap();
    Teacher { _folder: folder, path }
});

/// The arguments of a distillation that takes about a second.
pub fn distill<'a>(folder: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    const SETTINGS: [&str; 11] = [
        "synthesize.count=24",
        "synthesize.steps=2",
        "synthesize.shard_size=16",
        "distill.checkpoint_every=3",
        "distill.keep_checkpoints=9",
        "distill.sample_every=3",
        "distill.eval_every=0",
        "distill.control_steps=2",
        "ladd.head_width=8",
        "eval.samples=20",
        "eval.teacher_steps=1,2",
    ];
    let mut arguments = vec!["distill", "--teacher", TEACHER.path(), "--steps", "6", "--batch", "4", "--run", folder];
    SETTINGS.iter().for_each(|set| arguments.extend(["--set", set]));
    arguments.extend(more);
    arguments
}

fn bytes(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn a_whole_run_leaves_everything_behind() {
    let folder = TempDir::new().unwrap();
    let run = folder.path().join("run");
    let name = run.to_str().unwrap();
    let table = succeed(&distill(name, &[]));
    for row in ["| teacher", "| before LADD", "| regression control", "| student (LADD)", "times lower", "comparison.png", "curves.png"] {
        assert!(table.contains(row), "{row}: {table}");
    }
    for file in ["config.toml", "metrics.jsonl", "results.json", "results.md", "curves.png", "comparison.png"] {
        assert!(!bytes(&run, file).is_empty());
    }
    for file in ["samples/step_000000.png", "samples/step_000003.png", "samples/step_000006.png"] {
        assert!(image::open(run.join(file)).unwrap().width() > 1000, "{file}");
    }
    assert!(run.join("student/transformer/config.json").is_file());
    assert!(run.join("checkpoints/step_000006").is_dir());

    assert!(refuse(&distill(name, &[])).contains("exists already"));
    assert!(refuse(&["distill", "--run", name, "--resume", "--steps", "9"]).contains("--steps cannot be combined with --resume"));
    let info = succeed(&["info", name]);
    assert!(info.contains("6 of 6") && info.contains("state        finished\n"), "{info}");
    assert!(succeed(&["info", &format!("{name}/latents")]).contains("24 of 24 in 2 shards"));

    let out = folder.path().join("images");
    let sampled = succeed(&["sample", "--network", name, "--count", "2", "--out", out.to_str().unwrap(), "bag", "ankle boot"]);
    assert!(sampled.contains("4 images"), "{sampled}");
    let picture = image::open(out.join("ankle-boot-seed0-01.png")).unwrap();
    assert_eq!((picture.width(), picture.height()), (32, 32));
    assert!(out.join("grid.png").is_file());
    let sizes = ["sample", "--network", name, "--width", "16", "--out", out.to_str().unwrap(), "dress"];
    succeed(&sizes);
    assert_eq!(image::open(out.join("dress-seed0-00.png")).unwrap().width(), 16);
    assert!(refuse(&["sample", "--network", name, "--width", "20", "dress"]).contains("no multiple of 8"));
    assert!(refuse(&["sample", "--network", name, "--steps", "5000", "dress"]).contains("1 to 1000 steps"));

    let measured = succeed(&["eval", "--network", name, "--steps", "1,3", "--samples", "20", "--out", out.to_str().unwrap()]);
    assert!(measured.contains("| student (LADD) | renoise |     3 |"), "{measured}");
    assert!(out.join("results.json").is_file());
}

/// With the teacher judging in FP8: other gradients, so another student, and the settings say so.
#[test]
fn a_teacher_may_judge_in_fp8() {
    let folder = TempDir::new().unwrap();
    let student = |name: &str, precision: &str| {
        let run = folder.path().join(name);
        let set = format!("ladd.teacher_precision={precision}");
        let device = if name.contains("emulated") { "emulated" } else { "cpu" };
        succeed(&distill(run.to_str().unwrap(), &["--set", "distill.control=false", "--set", &set, "--device", device]));
        assert!(text(&bytes(&run, "config.toml")).contains(&format!("teacher_precision = \"{precision}\"")));
        bytes(&run, "student/student.safetensors")
    };
    let fp8 = student("fp8", "fp8");
    assert!(fp8 == student("again", "fp8"), "the same settings, another student");
    assert!(fp8 != student("bf16", "bf16"), "another precision, the same student");
    student("emulated", "fp8");
    let wrong = refuse(&distill("unused", &["--set", "ladd.teacher_precision=fp4"]));
    assert!(wrong.contains("ladd.teacher_precision") && wrong.contains("fp4") && wrong.contains("`bf16` or `fp8`"), "{wrong}");
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let folder = TempDir::new().unwrap();
    let student = |name: &str, more: &[&str]| {
        let run = folder.path().join(name);
        let mut all = vec!["--set", "distill.control=false"];
        all.extend(more);
        succeed(&distill(run.to_str().unwrap(), &all));
        bytes(&run, "student/student.safetensors")
    };
    let one = student("one", &["--threads", "1"]);
    assert!(one == student("two", &["--threads", "2"]), "other threads, other student");
    assert!(one == student("four", &["--threads", "4"]), "other threads, other student");
    assert!(one != student("seed", &["--seed", "1"]), "another seed, the same student");
}

#[test]
fn a_resumed_run_ends_where_an_uninterrupted_one_does() {
    resumed_like_uninterrupted("cpu");
}

/// The same on the CUDA backend, whose weights are rounded and whose steps are replayed.
#[test]
fn a_resumed_run_on_the_emulated_gpu_ends_where_an_uninterrupted_one_does() {
    resumed_like_uninterrupted("emulated");
}

fn resumed_like_uninterrupted(device: &str) {
    let folder = TempDir::new().unwrap();
    let run = folder.path().join("run");
    let name = run.to_str().unwrap();
    // Measured algorithms are kept beside the run; the CPU has none.
    succeed(&distill(name, &["--set", "distill.control=false", "--set", "gemm_algorithms=measured", "--device", device]));
    let algorithms = run.join("gemm_algorithms.json");
    assert_eq!(algorithms.exists(), device != "cpu");
    let whole = bytes(&run, "student/student.safetensors");
    let metrics = text(&bytes(&run, "metrics.jsonl"));

    // As if it had been killed after step 4, in the middle of a line.
    std::fs::remove_dir_all(run.join("checkpoints/step_000006")).unwrap();
    std::fs::remove_dir_all(run.join("student")).unwrap();
    let end = metrics.find("{\"kind\":\"step\",\"step\":5,").unwrap();
    std::fs::write(run.join("metrics.jsonl"), &metrics[..end + 20]).unwrap();
    if device != "cpu" {
        let kept = std::fs::read_to_string(&algorithms).unwrap();
        std::fs::write(&algorithms, kept.replace("\"emulator\"", "\"another GPU\"")).unwrap();
    }
    let output = run_resumed(name);
    assert!(output.contains("going on behind step 3"), "{output}");
    assert_eq!(output.contains("measured on another GPU"), device != "cpu", "{output}");
    assert!(whole == bytes(&run, "student/student.safetensors"), "the resumed student differs");
    let again = text(&bytes(&run, "metrics.jsonl"));
    let steps = |text: &str| text.lines().filter(|l| l.starts_with("{\"kind\":\"step\"")).count();
    assert_eq!((steps(&again), steps(&metrics)), (6, 6));
    let losses = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|l| l.starts_with("{\"kind\":\"step\""));
        lines.map(|l| l[l.find("\"loss_d\"").unwrap()..].to_owned()).collect()
    };
    assert_eq!(losses(&again), losses(&metrics));
    if device != "cpu" {
        std::fs::write(&algorithms, "{").unwrap();
        let error = refuse(&["distill", "--run", name, "--resume"]);
        assert!(error.contains("gemm_algorithms.json") && error.contains("delete the file"), "{error}");
    }
}

fn run_resumed(name: &str) -> String {
    let output = run(&["distill", "--run", name, "--resume"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stderr)
}

#[test]
fn a_run_goes_on_by_its_own_command_and_in_another_place() {
    let folder = TempDir::new().unwrap();
    std::fs::copy(TEACHER.path(), folder.path().join("teacher.safetensors")).unwrap();
    let mut arguments = distill("runs/one", &["--set", "distill.control=false"]);
    let teacher = arguments.iter().position(|a| *a == TEACHER.path()).unwrap();
    arguments[teacher] = "teacher.safetensors";
    succeed_in(folder.path(), &arguments);
    let run = folder.path().join("runs/one");
    let whole = bytes(&run, "student/student.safetensors");
    let error = refuse(&["pretrain", "--run", run.to_str().unwrap(), "--resume"]);
    assert!(error.contains("run of another command") && error.contains("ladd-fast distill --run"), "{error}");

    // Killed, and its files moved: the settings that it began with are corrected by hand.
    std::fs::remove_dir_all(run.join("student")).unwrap();
    std::fs::remove_dir_all(run.join("checkpoints/step_000006")).unwrap();
    std::fs::rename(folder.path().join("teacher.safetensors"), folder.path().join("elsewhere.safetensors")).unwrap();
    let error = refuse(&["sample", "--network", run.to_str().unwrap(), "bag"]);
    assert!(error.contains("no result yet") && error.contains(&format!("distill --run {} --resume", run.display())), "{error}");
    let config = std::fs::read_to_string(run.join("config.toml")).unwrap();
    let place = folder.path().join("elsewhere.safetensors");
    std::fs::write(run.join("config.toml"), config.replace("teacher.safetensors", place.to_str().unwrap())).unwrap();
    let said = run_resumed(run.to_str().unwrap());
    assert!(said.contains("elsewhere.safetensors: the run goes on to the same bits"), "{said}");
    assert!(whole == bytes(&run, "student/student.safetensors"), "the resumed student differs");
}

#[test]
fn what_failed_at_once_is_not_in_the_way() {
    let folder = TempDir::new().unwrap();
    let run = folder.path().join("run");
    let name = run.to_str().unwrap();
    for wrong in [&["--device", "cuda:77"][..], &["--set", "synthesize.prompts=nowhere.txt"], &["--data", "nowhere"]] {
        refuse(&distill(name, wrong));
        assert!(!run.exists(), "{wrong:?}");
    }
}

#[test]
fn nothing_is_written_over_a_network() {
    let folder = TempDir::new().unwrap();
    let network = folder.path().join("network.safetensors");
    std::fs::copy(TEACHER.path(), &network).unwrap();
    let name = network.to_str().unwrap();
    for command in ["merge", "unmerge"] {
        let error = refuse(&["lora", command, name, "lora.safetensors", "--out", name]);
        assert!(error.contains("exists already"), "{error}");
    }
    assert!(refuse(&["lora", "convert", "lora.safetensors", "--out", name]).contains("exists already"));
    assert!(refuse(&["lora", "extract", name, name, "--out", folder.path().to_str().unwrap()]).contains("exists already"));
}

#[test]
fn a_seed_that_no_file_can_hold_is_refused() {
    for command in [&["sample", "bag"][..], &["distill"], &["pretrain"], &["synthesize", "--out", "x"]] {
        let output = run(&[command, &["--seed", "9223372036854775808"]].concat());
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("from 0 to 9223372036854775807"), "{}", text(&output.stderr));
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_a_run_that_can_be_resumed() {
    use std::time::{Duration, Instant};
    let folder = TempDir::new().unwrap();
    let run = folder.path().join("run");
    let name = run.to_str().unwrap();
    let mut arguments = distill(name, &["--set", "distill.checkpoint_every=0", "--set", "distill.sample_every=0"]);
    arguments.iter_mut().filter(|a| **a == "6").for_each(|steps| *steps = "100000");
    let mut child = program(&arguments).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    let steps = || std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default().matches("\"kind\":\"step\"").count();
    while steps() < 3 {
        assert!(started.elapsed() < Duration::from_secs(120) && child.try_wait().unwrap().is_none(), "no step was recorded");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{message}");
    assert!(message.contains("go on with: ladd-fast distill --run"), "{message}");
    assert_eq!(std::fs::read_dir(run.join("checkpoints")).unwrap().count(), 1);
    let info = succeed(&["info", name]);
    let state = format!("state        unfinished; unless it is running now, go on with: ladd-fast distill --run {name} --resume\n");
    assert!(info.contains("checkpoint") && info.contains(&state), "{info}");
}

#[test]
fn synthesis_goes_on_where_it_stopped() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().to_str().unwrap();
    let prompts = folder.path().join("prompts.txt");
    std::fs::write(&prompts, "a bag\na dress\na bag\n").unwrap();
    let arguments = |count: &'static str| {
        let base = ["synthesize", "--teacher", TEACHER.path(), "--count", count, "--steps", "1", "--out", out, "--prompts"];
        let mut all: Vec<String> = base.iter().map(|a| (*a).to_owned()).collect();
        all.extend([prompts.to_str().unwrap().to_owned(), "--set".into(), "synthesize.shard_size=4".into()]);
        all
    };
    let call = |count| run(&arguments(count).iter().map(String::as_str).collect::<Vec<_>>());
    assert!(call("8").status.success());
    std::fs::remove_file(folder.path().join("shard-00001.safetensors")).unwrap();
    assert!(call("8").status.success());
    assert!(text(&call("8").stderr).contains("are there already"));
    let other = call("9");
    assert_eq!(other.status.code(), Some(2));
    assert!(text(&other.stderr).contains("total"), "{}", text(&other.stderr));
}
