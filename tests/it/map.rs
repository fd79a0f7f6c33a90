//! `kernels/README.md` names every file of the kernels, and nothing that is not there.

use std::collections::BTreeSet;

/// Names of the files in a folder below `kernels/` with one of the extensions.
fn files(folder: &str, extensions: &[&str]) -> BTreeSet<String> {
    let entries = std::fs::read_dir(crate::root().join("kernels").join(folder)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names = names.filter(|name| extensions.iter().any(|e| name.ends_with(e)));
    names.map(|name| if folder.is_empty() { name } else { format!("{folder}/{name}") }).collect()
}

#[test]
fn the_map_of_the_kernels_is_complete() {
    let text = std::fs::read_to_string(crate::root().join("kernels/README.md")).unwrap();
    // What a row of a table begins with.
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let named: BTreeSet<String> = rows.map(|(name, _)| name.to_owned()).filter(|name| !name.ends_with('/')).collect();
    let there: BTreeSet<String> = [files("", &[".cu", ".h"]), files("include", &[".cuh"])].into_iter().flatten().collect();
    assert_eq!(named, there);
    for file in files("", &[".cu"]) {
        assert_eq!(text.matches(&format!("| `{file}` |")).count(), 2, "{file} has a row in each of the two tables");
    }
}

/// Every launcher that the map names is there.
#[test]
fn the_map_names_launchers_that_are_there() {
    let text = std::fs::read_to_string(crate::root().join("kernels/README.md")).unwrap();
    let words = text.split('`').filter(|word| word.ends_with(".rs") && !word.contains('/'));
    let launchers: BTreeSet<&str> = words.collect();
    assert!(launchers.len() > 10, "{launchers:?}");
    for launcher in launchers {
        assert!(crate::root().join("src/device/cuda/ops").join(launcher).is_file(), "there is no launcher {launcher}");
    }
}
