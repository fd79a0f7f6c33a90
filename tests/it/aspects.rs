//! Several aspects from one end to the other: a teacher draws latents of several sizes, killed and in several processes; a student is
//! distilled on them, killed and resumed; prompts come from files that may hold anything.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ladd_fast::data::LatentDataset;
use tempfile::TempDir;

use crate::cli::{TEACHER, refuse, succeed};

const SIZES: &str = "32x32@2,16x32,32x16";

/// The arguments of a synthesis of 48 latents in three sizes, in shards of 8.
fn synthesis(out: &Path, more: &[&str]) -> Vec<String> {
    let fixed = ["synthesize", "--teacher", TEACHER.path(), "--count", "48", "--steps", "40", "--sizes", SIZES, "--device", "cpu"];
    let sets = ["--set", "synthesize.shard_size=8", "--set", "synthesize.batch=3", "--threads", "1", "--out", out.to_str().unwrap()];
    fixed.iter().chain(&sets).chain(more).map(|word| (*word).to_owned()).collect()
}

fn spawn(arguments: &[String]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ladd-fast"));
    command.args(arguments).env_remove("RUST_LOG").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn run(arguments: &[String]) -> String {
    succeed(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Waits until a file is there or the process has ended.
fn wait_for(child: &mut Child, file: &Path) {
    let started = Instant::now();
    while !file.exists() && child.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Names and bytes of a folder's files of this beginning.
fn files(folder: &Path, beginning: &str) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut files: Vec<_> =
        entries.filter(|path| name(path).starts_with(beginning)).map(|path| (name(&path), std::fs::read(path).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn a_killed_synthesis_and_several_processes_write_what_one_writes() {
    let scratch = TempDir::new().unwrap();
    let whole = scratch.path().join("whole");
    let said = run(&synthesis(&whole, &[]));
    assert!(said.contains("48 latents in"), "{said}");
    let expected = files(&whole, "");
    let shapes: Vec<_> = LatentDataset::open(&whole, &|_, _| ()).unwrap().buckets().iter().map(|b| (b.shape, b.samples.len())).collect();
    assert_eq!(shapes.iter().map(|(shape, _)| *shape).collect::<Vec<_>>(), [[16, 8, 8], [16, 4, 8], [16, 8, 4]]);
    assert!(shapes[0].1 > shapes[1].1 && shapes.iter().map(|(_, count)| count).sum::<usize>() == 48, "{shapes:?}");

    // Killed in the middle of a shard, interrupted in the middle of another, and repeated.
    let folder = scratch.path().join("killed");
    let mut child = spawn(&synthesis(&folder, &[]));
    wait_for(&mut child, &folder.join("shard-00001.safetensors"));
    child.kill().unwrap();
    child.wait().unwrap();
    let mut child = spawn(&synthesis(&folder, &[]));
    wait_for(&mut child, &folder.join("shard-00003.safetensors"));
    #[cfg(unix)]
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let status = child.wait().unwrap();
    assert!(status.success() || status.code() == Some(130), "{status}");
    run(&synthesis(&folder, &[]));
    assert!(files(&folder, "") == expected, "killed: {:?}", files(&folder, "").iter().map(|(name, _)| name).collect::<Vec<_>>());

    // Three processes at once, one of them killed.
    let folder = scratch.path().join("shared");
    let part = |which: &str| synthesis(&folder, &["--shard", which]);
    let mut children = ["1/3", "2/3", "3/3"].map(|which| spawn(&part(which)));
    wait_for(&mut children[1], &folder.join("shard-00001.safetensors"));
    children[1].kill().unwrap();
    let statuses = children.map(|child| child.wait_with_output().unwrap());
    assert!(statuses[0].status.success() && statuses[2].status.success(), "{statuses:?}");
    assert!(
        refuse(&[
            "distill",
            "--teacher",
            TEACHER.path(),
            "--data",
            folder.to_str().unwrap(),
            "--run",
            scratch.path().join("r").to_str().unwrap()
        ])
        .contains("of 48 latents")
            || statuses[1].status.success()
    );
    run(&part("2/3"));
    assert!(files(&folder, "shard") == files(&whole, "shard"));

    let name = folder.to_str().unwrap();
    let about = succeed(&["info", name, "--verify"]);
    assert!(about.contains("48 of 48") && about.contains("all checksums right") && about.contains("of 16x8x4"), "{about}");
    let mut damaged = std::fs::read(folder.join("shard-00002.safetensors")).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(folder.join("shard-00002.safetensors"), damaged).unwrap();
    assert!(succeed(&["info", name]).contains("48 of 48"));
    assert!(refuse(&["info", name, "--verify"]).contains("shard-00002.safetensors: has changed"));
    assert!(refuse(&["info", TEACHER.path(), "--verify"]).contains("no folder of latents"));

    let fail = |more: &[&str]| refuse(&synthesis(&folder, more).iter().map(String::as_str).collect::<Vec<_>>());
    assert!(fail(&["--shard", "1/2"]).contains("was begun by 3 processes"));
    assert!(fail(&["--shard", "4/3"]).contains("--shard 4/3"));
    assert!(fail(&["--shard", "1/3", "--seed", "8"]).contains("seed: 0, now 8"));
    assert!(fail(&["--shard", "1/3", "--shift", "2"]).contains("shifted by 2"));
    assert!(fail(&["--aspects", "1:1"]).contains("--aspects"));
    assert!(fail(&["--set", "synthesize.aspects=1"]).contains("synthesize.aspects"));
}

/// The arguments of a distillation on latents.
fn distillation(data: &Path, run: &Path) -> Vec<String> {
    let fixed = ["distill", "--teacher", TEACHER.path(), "--steps", "9", "--batch", "16", "--threads", "1"];
    let sets = [
        "distill.accumulate=2",
        "distill.checkpoint_every=2",
        "distill.keep_checkpoints=9",
        "distill.sample_every=6",
        "distill.eval_every=0",
        "distill.control=false",
        "ladd.head_width=8",
        "eval.samples=20",
        "eval.teacher_steps=2",
    ];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let folders = ["--data", data.to_str().unwrap(), "--run", run.to_str().unwrap()];
    fixed.into_iter().chain(sets).chain(folders).map(str::to_owned).collect()
}

#[test]
fn a_distillation_on_several_aspects_is_the_same_after_a_kill() {
    let scratch = TempDir::new().unwrap();
    let path = |name: &str| scratch.path().join(name);
    run(&synthesis(&path("latents"), &[]));
    let (whole, killed) = (path("whole"), path("killed"));
    let output = spawn(&distillation(&path("latents"), &whole)).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("fewer than a batch of 16"), "{said}");

    let mut child = spawn(&distillation(&path("latents"), &killed));
    wait_for(&mut child, &killed.join("checkpoints/step_000004"));
    child.kill().unwrap();
    child.wait().unwrap();
    succeed(&["distill", "--run", killed.to_str().unwrap(), "--resume", "--threads", "2"]);
    let student = |run: &Path| std::fs::read(run.join("student/student.safetensors")).unwrap();
    assert!(student(&whole) == student(&killed), "the resumed student differs");

    // The columns of the grids take turns in the three aspects.
    for grid in ["samples/step_000000.png", "samples/step_000009.png", "comparison.png"] {
        assert!(image::open(whole.join(grid)).unwrap().width() > 900, "{grid}");
    }
    let out = path("images");
    succeed(&["sample", "--network", whole.to_str().unwrap(), "--size", "16x32", "--out", out.to_str().unwrap(), "bag"]);
    let picture = image::open(out.join("bag-seed0-00.png")).unwrap();
    assert_eq!((picture.width(), picture.height()), (32, 16));
    assert!(refuse(&["sample", "--size", "16", "bag"]).contains("HEIGHTxWIDTH"));
    assert!(refuse(&["sample", "--size", "16x16", "--width", "32", "bag"]).contains("--width"));
}

#[test]
fn files_of_prompts_that_cannot_be_read_are_one_line() {
    let scratch = TempDir::new().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let says = |name: &str, content: &[u8], more: &[&str], cause: &str| {
        std::fs::write(path(name), content).unwrap();
        let (file, out) = (path(name), path("out"));
        let fixed = ["synthesize", "--teacher", TEACHER.path(), "--count", "2", "--prompts", file.to_str().unwrap()];
        let error = refuse(&[&fixed[..], &["--out", out.to_str().unwrap()], more].concat());
        assert!(error.contains(name) && error.contains(cause), "{error}");
    };
    says("a.txt", b"fine\n\xff\xfe\n", &[], "line 2: is not UTF-8");
    says("a.txt", b"", &[], "holds no prompt");
    says("a.jsonl", b"{\"prompt\": \"a bag\"}\n{\"title\": \"x\"}\n", &[], "line 2: has none of `prompt`");
    says("a.jsonl", b"{\"prompt\": \"a bag\"}\n", &["--prompt-key", "title"], "line 1: has no `title`");
    says("a.jsonl", b"\n\n{\"prompt\": 3}\n", &[], "line 3: `prompt` is a number");
    says("a.jsonl", b"{\"prompt\"", &[], "line 1: is no JSON");
    says("a.parquet", b"PAR1 and nothing else PAR1", &[], "is no parquet table");
    // A line of a gigabyte, which is a hole in the file.
    let long = std::fs::File::create(path("long.txt")).unwrap();
    long.set_len(1 << 30).unwrap();
    let (file, out) = (path("long.txt"), path("out"));
    let arguments = ["synthesize", "--teacher", TEACHER.path(), "--prompts", file.to_str().unwrap(), "--out", out.to_str().unwrap()];
    assert!(refuse(&arguments).contains("line 1: is longer than 1048576 bytes"));

    std::fs::write(path("good.jsonl"), "{\"caption\": \"bag\", \"id\": 1}\n{\"caption\": \"coat\"}\n").unwrap();
    let (file, out) = (path("good.jsonl"), path("latents"));
    let arguments = ["--prompts", file.to_str().unwrap(), "--count", "4", "--steps", "1", "--out", out.to_str().unwrap()];
    succeed(&[&["synthesize", "--teacher", TEACHER.path()][..], &arguments].concat());
    assert!(succeed(&["info", out.to_str().unwrap()]).contains("2, such as \"bag\""));
}
