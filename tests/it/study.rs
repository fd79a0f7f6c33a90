//! `ladd-fast study` from outside, with tiny networks: what it leaves behind, that it goes on where it stopped, and its mistakes.

use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use ladd_fast::study::StudyResults;
use tempfile::TempDir;

use crate::cli::{TEACHER, refuse, run, succeed, succeed_in, text};

const STUDY: &str = r#"
title = "Tiny"
set = { distill.steps = 4, distill.batch = 4, distill.eval_every = 2, distill.checkpoint_every = 2, distill.keep_checkpoints = 9, distill.sample_every = 0, distill.control = false, synthesize.count = 16, synthesize.steps = 2, ladd.head_width = 8, eval.samples = 20, eval.teacher_steps = [], eval.student_steps = [1, 2] }

[[variation]]
name = "noise"
title = "Noise"
draw = "value"
across = "m"

[[variation.run]]
name = "m = -1"
value = -1
set = { ladd.renoise_t = { kind = "logit_normal", mean = -1.0, std = 1.0 } }

[[variation.run]]
name = "m = 1"
value = 1
set = { ladd.renoise_t = { kind = "logit_normal", mean = 1.0, std = 1.0 } }

[[variation]]
name = "methods"
title = "Methods"
draw = "sampling"

[[variation.run]]
name = "LADD"

[[variation.run]]
name = "LCM"
set = { distill.method = "lcm" }

[[variation.run]]
name = "ADD"
set = { distill.method = "add" }
"#;

/// A study in a folder of its own.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new(study: &str) -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("study.toml"), study).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let path = |name: &str| self.path(name).to_string_lossy().into_owned();
        let teacher = format!("teacher.checkpoint={}", TEACHER.path());
        let out = path("out");
        let out: &[&str] = if more.contains(&"--out") { &[] } else { &["--out", &out] };
        let all = ["study", "--study", &path("study.toml"), "--set", &teacher];
        all.iter().chain(out).chain(more).map(|a| (*a).to_owned()).collect()
    }

    /// What it says on the way.
    fn go(&self, more: &[&str]) -> String {
        let arguments = self.arguments(more);
        let output = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    }

    fn refuse(&self, more: &[&str]) -> String {
        refuse(&self.arguments(more).iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn results(&self) -> StudyResults {
        serde_json::from_slice(&std::fs::read(self.path("out/results.json")).unwrap()).unwrap()
    }

    fn runs(&self) -> Vec<PathBuf> {
        let mut runs: Vec<_> = std::fs::read_dir(self.path("out/runs")).unwrap().map(|e| e.unwrap().path()).collect();
        runs.sort();
        runs
    }
}

fn student(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("student/student.safetensors")).unwrap()
}

#[test]
fn a_study_repeats_nothing_and_goes_on_where_it_stopped() {
    let bench = Bench::new(STUDY);
    let said = bench.go(&["--what", "noise", "--seeds", "2"]);
    assert!(said.contains("run 4 of 4: noise, m = 1, seed 1"), "{said}");
    let first = bench.results();
    assert_eq!((first.runs.len(), first.planned, bench.runs().len()), (4, 4, 4));
    let slash = format!("{}/", bench.path("out").display());
    let again = bench.go(&["--what", "noise", "--seeds", "2", "--out", &slash]);
    assert!(!again.contains("run 1 of 4"), "{again}");
    assert!(bench.path("out/noise.png").is_file() && !bench.path("out/methods.png").exists());
    let info = succeed(&["info", bench.path("out").to_str().unwrap()]);
    assert!(info.contains("runs         4 of 4\nstate        finished\n") && info.contains("FD at 2"), "{info}");
    let one = &first.runs[0];
    assert_eq!((one.latents, one.steps, one.value, one.quality.len()), (16, 4, Some(-1.0), 6), "before, and after 2 and 4 steps");
    assert!(one.flops_per_step > 0 && one.student_parameters == one.teacher_parameters);
    assert_eq!(std::fs::read_dir(bench.path("out/latents")).unwrap().count(), 1, "all draw on the same latents");

    // LADD is the demo's m = -1, which is there.
    let said = bench.go(&[]);
    assert!(said.contains("of 5: methods, LCM") && !said.contains("of 5: noise") && !said.contains("of 5: methods, LADD"), "{said}");
    let all = bench.results();
    assert_eq!((all.runs.len(), bench.runs().len()), (5, 6));
    let (noise, ladd) = (&all.runs[0], all.runs.iter().find(|r| r.run == "LADD").unwrap());
    assert_eq!((&noise.folder, &noise.quality), (&ladd.folder, &ladd.quality));
    let students: Vec<_> = bench.runs().iter().map(|run| student(run)).collect();
    assert!(students.iter().enumerate().all(|(i, a)| students[..i].iter().all(|b| a != b)), "every run has a student of its own");
    let table = std::fs::read_to_string(bench.path("out/results.md")).unwrap();
    assert!(table.contains("Methods:") && table.contains("| LCM") && table.contains("FD at 2"), "{table}");

    // As if killed in the third step of LCM.
    let lcm = bench.path("out").join(&all.runs.iter().find(|r| r.run == "LCM").unwrap().folder);
    let whole = student(&lcm);
    std::fs::remove_file(lcm.join("study.json")).unwrap();
    std::fs::remove_dir_all(lcm.join("student")).unwrap();
    std::fs::remove_dir_all(lcm.join("checkpoints/step_000004")).unwrap();
    let said = bench.go(&[]);
    assert!(said.contains("going on behind step 2"), "{said}");
    assert!(student(&lcm) == whole, "the resumed student differs");
    let again = bench.results();
    assert_eq!(again.runs.iter().map(|r| &r.quality).collect::<Vec<_>>(), all.runs.iter().map(|r| &r.quality).collect::<Vec<_>>());
}

/// Forty pictures of noise in the files of Fashion-MNIST.
fn pictures(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let write = |name: &str, header: &[u8], body: Vec<u8>| {
        let mut file = GzEncoder::new(std::fs::File::create(folder.join(name)).unwrap(), Compression::fast());
        file.write_all(header).unwrap();
        file.write_all(&body).unwrap();
        file.finish().unwrap();
    };
    let pixels = (0..40 * 784_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    write("train-images-idx3-ubyte.gz", &[0, 0, 8, 3, 0, 0, 0, 40, 0, 0, 0, 28, 0, 0, 0, 28], pixels);
    write("train-labels-idx1-ubyte.gz", &[0, 0, 8, 1, 0, 0, 0, 40], (0..40).map(|i| i % 10).collect());
}

#[test]
fn networks_of_other_sizes_are_trained_first() {
    let networks = r#"
[[network]]
name = "small"
set = { model.depth = 1 }

[[network]]
name = "large"
set = { model.depth = 2 }

[[variation]]
name = "sizes"
title = "Sizes"
draw = "steps"

[[variation.run]]
name = "small student"
student = "small"
teacher = "large"
data = "large"

[[variation.run]]
name = "large student"
student = "large"
teacher = "small"
data = "large"
"#;
    let head = STUDY.split("[[variation]]").next().unwrap();
    let bench = Bench::new(&format!("{head}{networks}"));
    pictures(&bench.path("images"));
    let images = format!("data.images={}", bench.path("images").display());
    let tiny = ["model.heads=2", "model.head_dim=8", "pretrain.steps=2", "pretrain.batch=4"];
    let mut more = vec!["--set", &images];
    tiny.iter().for_each(|set| more.extend(["--set", set]));
    let missing = bench.refuse(&["--set", "data.images=/no/such/folder"]);
    assert!(missing.contains("get-demo-data"), "{missing}");
    bench.go(&more);
    let results = bench.results();
    let sizes = |i: usize| (results.runs[i].student_parameters, results.runs[i].teacher_parameters);
    assert_eq!(sizes(0), (sizes(1).1, sizes(1).0));
    assert!(sizes(0).0 < sizes(0).1, "{sizes:?}", sizes = sizes(0));
    assert!(results.runs[0].flops_per_step != results.runs[1].flops_per_step && bench.path("out/sizes.png").is_file());
    assert_eq!(std::fs::read_dir(bench.path("out/networks")).unwrap().count(), 2);
    assert!(!bench.go(&more).contains("training a teacher"), "networks that are there are not trained again");
}

#[test]
fn mistakes_are_one_line() {
    let says = |study: &str, more: &[&str], part: &str| {
        let error = Bench::new(study).refuse(more);
        assert!(error.contains(part), "{error}");
    };
    says(&STUDY.replace("[[variation]]", "[[variation]"), &[], "study.toml:5: ");
    says(&STUDY.replace("across", "acros"), &[], "study.toml:9: unknown field `acros`");
    says(&STUDY.replace("ladd.head_width", "ladd.head_wdith"), &[], "ladd.head_wdith");
    says(&STUDY.replace("distill.method = \"lcm\"", "distill.method = \"lmc\""), &[], "variation \"methods\", run \"LCM\": distill.method");
    says(&STUDY.replace("value = 1\n", ""), &[], "run \"m = 1\" needs a finite `value`");
    says(STUDY, &["--what", "nois"], "--what nois: this study varies noise, methods");
    says(STUDY, &["--seeds", "0"], "--seeds");
    says(STUDY, &["--config", "no/such.toml"], "no/such.toml");
    says(STUDY, &["--set", "distill.student=no/such.safetensors"], "no/such.safetensors");
    let error = refuse(&["study", "--study", "no/such-study.toml"]);
    assert!(error.contains("cannot read the study no/such-study.toml"), "{error}");
    assert!(succeed(&["study", "--help"]).contains("--seeds"));
}

#[test]
fn a_study_in_a_folder_with_a_short_name_keeps_its_runs_apart() {
    let folder = TempDir::new().unwrap();
    let set = STUDY.lines().find(|line| line.starts_with("set")).unwrap();
    let runs: String = [4, 14]
        .map(|steps| format!("[[variation.run]]\nname = \"{steps}\"\nvalue = {steps}\nset = {{ distill.steps = {steps} }}\n"))
        .concat();
    let study = format!(
        "title = \"Steps\"\n{set}\n[[variation]]\nname = \"steps\"\ntitle = \"Steps\"\ndraw = \"value\"\nacross = \"steps\"\n{runs}"
    );
    std::fs::write(folder.path().join("study.toml"), study).unwrap();
    let teacher = format!("teacher.checkpoint={}", TEACHER.path());
    succeed_in(folder.path(), &["study", "--study", "study.toml", "--out", "1", "--set", &teacher]);
    let results: StudyResults = serde_json::from_slice(&std::fs::read(folder.path().join("1/results.json")).unwrap()).unwrap();
    assert_eq!(results.runs.iter().map(|run| run.steps).collect::<Vec<_>>(), [4, 14]);
    assert_eq!(std::fs::read_dir(folder.path().join("1/runs")).unwrap().count(), 2);
    let ends: std::collections::BTreeSet<_> = results.runs.iter().map(|run| run.folder.rsplit('-').next().unwrap().to_owned()).collect();
    assert_eq!(ends.len(), 2, "two runs, one digest: {ends:?}");
}
