//! `kernels/README.md` names every file of the kernels, and nothing that is not there; a kernel's file says what bounds it.

use std::collections::BTreeSet;

use ladd_fast::device::cuda::emulated::kernels;

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

/// The name without what tells one variant from another of the same floor: width of access, sizes, tiles.
fn without_variant(name: &str) -> String {
    let variant = |part: &str| {
        let sized = part.starts_with(['x', 'd', 'q', 'k', 'r', 'm', 'p']) && part[1..].parse::<u32>().is_ok();
        sized && part != "x0" || ["wide", "narrow", "large", "small", "turns"].contains(&part)
    };
    name.split('_').enumerate().filter(|(i, part)| *i == 0 || !variant(part)).map(|(_, part)| part).collect::<Vec<_>>().join("_")
}

/// What the paragraph `Floors` of a file's header names; a `*` stands for the rest of a name.
fn floors(source: &str) -> BTreeSet<String> {
    let header = source.lines().map_while(|line| line.strip_prefix("//"));
    let paragraph = header.skip_while(|line| !line.starts_with(" Floors")).take_while(|line| !line.is_empty());
    let rows = paragraph.filter_map(|line| line.strip_prefix("   ")).filter(|row| !row.starts_with(' '));
    rows.filter_map(|row| row.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn every_kernel_names_its_floor() {
    let kernels = kernels();
    for file in files("", &[".cu"]) {
        let floors = floors(&std::fs::read_to_string(crate::root().join("kernels").join(&file)).unwrap());
        let here = kernels.iter().filter(|(path, _)| path.ends_with(&format!("kernels/{file}")));
        let names: BTreeSet<String> = here.map(|(_, name)| without_variant(name)).collect();
        assert!(!names.is_empty(), "kernels/{file} registers no kernel");
        let of = |name: &str, floor: &str| floor.strip_suffix('*').map_or(name == floor, |start| name.starts_with(start));
        for name in &names {
            assert!(
                floors.iter().any(|floor| of(name, floor)),
                "the header of kernels/{file} names no floor of {name}, only of {floors:?}"
            );
        }
        for floor in &floors {
            assert!(names.iter().any(|name| of(name, floor)), "kernels/{file} has no {floor}, whose floor its header names");
        }
    }
}
