//! A run that is killed and started again gives the bytes of one that was not, from folders and archives alike.

use std::path::Path;

use super::{Desk, gzip, plain, tar};

/// All files of a data set.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

/// Pictures of three sizes in turns, some of them broken, in an archive.
fn source(desk: &Desk) {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for i in 0..23u8 {
        let size = [(32, 32), (48, 32), (32, 64)][usize::from(i % 3)];
        let picture = if i % 7 == 3 { b"broken".to_vec() } else { plain(size, [i * 10, 255 - i * 10, 40]) };
        files.push((format!("{i:02}.png"), picture));
        files.push((format!("{i:02}.txt"), format!("picture {}", i % 5).into_bytes()));
    }
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    desk.write("in.tar", tar(&files));
    desk.write("in.tar.gz", gzip(&tar(&files)));
}

/// The state of a run that was killed after `keep` shards: the manifest lists them, of another there is a piece.
fn kill_after(folder: &Path, keep: usize) {
    let path = folder.join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let shards = manifest["shards"].as_array_mut().unwrap();
    for shard in shards.drain(keep..) {
        std::fs::remove_file(folder.join(shard["file"].as_str().unwrap())).unwrap();
    }
    manifest.as_object_mut().unwrap().remove("skipped");
    std::fs::write(&path, serde_json::to_string_pretty(&manifest).unwrap()).unwrap();
    std::fs::write(folder.join(".shard.1-1.tmp"), b"half").unwrap();
    for name in ["skipped.jsonl", "buckets.png", "captions.txt"] {
        std::fs::remove_file(folder.join(name)).unwrap();
    }
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    for name in ["in.tar", "in.tar.gz"] {
        let desk = Desk::new();
        source(&desk);
        let more = ["--set", "prepare.shard_size=3"];
        desk.prepare(&[name], &more);
        let whole = contents(&desk.path("out"));
        let shards = whole.iter().filter(|(name, _)| name.starts_with("shard-")).count();
        assert_eq!((shards, desk.open().dataset.len(), desk.skipped().len()), (8, 20, 3));
        for keep in [0, 1, 4, 7, 8] {
            kill_after(&desk.path("out"), keep);
            desk.prepare(&[name], &more);
            assert!(contents(&desk.path("out")) == whole, "{name}, killed after {keep} shards");
        }
        // Once more, where nothing is missing.
        desk.prepare(&[name], &more);
        assert!(contents(&desk.path("out")) == whole, "{name}, complete");
        // A damaged shard is made again, with all after it.
        let victim = desk.path("out/shard-00004.safetensors");
        let mut bytes = std::fs::read(&victim).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&victim, bytes).unwrap();
        desk.prepare(&[name], &more);
        assert!(contents(&desk.path("out")) == whole, "{name}, damaged");
    }
}

#[test]
fn threads_change_nothing() {
    let desk = Desk::new();
    source(&desk);
    let mut all = ["1", "2"].iter().map(|threads| {
        desk.prepare(&["in.tar"], &["--threads", threads]);
        let contents = contents(&desk.path("out"));
        std::fs::remove_dir_all(desk.path("out")).unwrap();
        contents
    });
    assert!(all.next() == all.next());
}

#[test]
fn other_pictures_or_settings_are_refused() {
    let desk = Desk::new();
    source(&desk);
    desk.prepare(&["in.tar"], &[]);
    let error = desk.fails(&["in.tar"], &["--crop", "center"]);
    assert!(error.contains("prepared.crop: \"subject\", now \"center\""), "{error}");
    desk.write("in.tar", tar(&[("a.png", &plain((32, 32), [1, 2, 3])), ("a.txt", b"other")]));
    let error = desk.fails(&["in.tar"], &[]);
    assert!(error.contains("holds latents of other settings") && error.contains("prepared.pictures"), "{error}");
}
