//! WebDataset archives, well-meant and hostile. Nothing of them may reach the disk.

use std::path::Path;

use super::{Desk, gzip, near, plain, tar};

#[test]
fn samples_are_files_of_one_name() {
    let (red, green) = (plain((32, 32), [250, 0, 0]), plain((32, 32), [0, 250, 0]));
    let files: [(&str, &[u8]); 5] =
        [("00/a.png", &red), ("00/a.txt", b"red"), ("00/b.json", br#"{"text": "green"}"#), ("00/b.png", &green), ("00/b.cls", b"3")];
    for (name, bytes) in [("in.tar", tar(&files)), ("in.tar.gz", gzip(&tar(&files))), ("in.tgz", gzip(&tar(&files)))] {
        let desk = Desk::new();
        desk.write(name, bytes);
        desk.prepare(&[name], &[]);
        let prepared = desk.open();
        assert_eq!(prepared.captions(), ["red", "green"], "{name}");
        assert!(
            near(*prepared.picture(0).1.get_pixel(9, 9), [250, 0, 0], 2) && near(*prepared.picture(1).1.get_pixel(9, 9), [0, 250, 0], 2)
        );
    }
}

#[test]
fn several_sources_make_one_data_set() {
    let desk = Desk::new();
    desk.write("a.tar", tar(&[("x.png", &plain((32, 32), [1, 2, 3])), ("x.txt", b"first")]));
    desk.write("b/y.png", plain((32, 32), [4, 5, 6]));
    desk.write("b/y.txt", "second");
    desk.write("c.tar.gz", gzip(&tar(&[("x.png", &plain((32, 32), [7, 8, 9])), ("x.txt", b"third")])));
    desk.prepare(&["a.tar", "b", "c.tar.gz"], &[]);
    assert_eq!(desk.open().captions(), ["first", "second", "third"]);
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<String> {
    let mut found: Vec<String> = walkdir::WalkDir::new(folder)
        .into_iter()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned())
        .collect();
    found.sort();
    found
}

#[test]
fn paths_in_archives_lead_nowhere() {
    let picture = plain((32, 32), [80, 80, 80]);
    let names = ["../up.png", "/abs.png", "a/../../b.png", "./c.png", "out/manifest.json", "..\\win.png"];
    let mut entries: Vec<(String, Vec<u8>)> = Vec::new();
    for name in names {
        entries.push((name.to_owned(), picture.clone()));
        entries.push((name.replace(".png", ".txt").replace("manifest.json", "manifest.txt"), name.as_bytes().to_vec()));
    }
    let entries: Vec<(&str, &[u8])> = entries.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let desk = Desk::new();
    desk.write("work/in.tar", tar(&entries));
    desk.prepare(&["work/in.tar"], &[]);
    // To the last one a backslash is no separator: its name begins with a dot, and hidden files are passed over.
    assert_eq!(desk.open().captions(), ["../up.png", "/abs.png", "a/../../b.png", "./c.png"]);
    let expected = [
        "out/.lock",
        "out/buckets.png",
        "out/captions.txt",
        "out/manifest.json",
        "out/shard-00000.safetensors",
        "out/skipped.jsonl",
        "work/in.tar",
    ];
    assert_eq!(files(&desk.path("")), expected);
    assert!(!Path::new("/abs.png").exists());
}

#[test]
fn links_in_archives_are_passed_over() {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind) in [("l.png", tar::EntryType::Symlink), ("h.png", tar::EntryType::Link)] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_path(name).unwrap();
        header.set_link_name("/etc/hostname").unwrap();
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
    }
    let desk = Desk::new();
    desk.write("in.tar", builder.into_inner().unwrap());
    assert!(desk.fails(&["in.tar"], &["--caption-from", "none"]).contains("holds no pictures"));
}

#[test]
fn a_truncated_archive_gives_what_is_whole() {
    let pictures: Vec<(String, Vec<u8>)> = (0..6).map(|i| (format!("{i}.png"), plain((32, 32), [i * 40, 0, 0]))).collect();
    let entries: Vec<(&str, &[u8])> = pictures.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let whole = tar(&entries);
    let length = 512 + entries[0].1.len().next_multiple_of(512);
    for (name, bytes) in [("cut.tar", whole[..4 * length + 520].to_vec()), ("cut.tar.gz", gzip(&whole)[..gzip(&whole).len() - 60].to_vec())]
    {
        let desk = Desk::new();
        desk.write(name, bytes);
        let more = ["--caption-from", "filename"];
        let error = desk.fails(&[name], &[&more[..], &["--strict"]].concat());
        assert!(error.contains("is damaged after") && error.contains("without --strict"), "{error}");
        desk.prepare(&[name], &more);
        let captions = desk.open().captions();
        assert!((1..=6).contains(&captions.len()), "{captions:?}");
        if name == "cut.tar" {
            assert_eq!(captions, ["0", "1", "2", "3"]);
        }
    }
}

#[test]
fn giants_and_nonsense_are_one_line() {
    let giant = |kind: tar::EntryType, size: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path("x.png").unwrap();
        header.set_size(size);
        header.set_cksum();
        [header.as_bytes().as_slice(), &[b'x'; 9000]].concat()
    };
    for (bytes, part) in [
        (vec![7; 5000], "no tar archive"),
        (vec![], "holds no pictures"),
        (giant(tar::EntryType::GNULongName, 1 << 40), "a name of more than"),
        (giant(tar::EntryType::XHeader, 1 << 40), "a pax header of more than"),
        (giant(tar::EntryType::Regular, 1 << 60), "cut short"),
        (giant(tar::EntryType::Regular, u64::MAX), "holds no picture"),
    ] {
        let desk = Desk::new();
        desk.write("in.tar", bytes);
        let error = desk.fails(&["in.tar"], &["--caption-from", "none"]);
        assert!(error.contains("in.tar") && error.contains(part), "{part}: {error}");
    }
    let desk = Desk::new();
    desk.write("in.tar.gz", "not gzipped");
    assert!(desk.fails(&["in.tar.gz"], &[]).contains("in.tar.gz"));
}

/// A PNG that says it has 60000 x 60000 pixels.
#[test]
fn memory_bombs_are_skipped() {
    let mut bomb = plain((32, 32), [0; 3]);
    bomb[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    bomb[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let checksum = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&checksum.to_be_bytes());
    let desk = Desk::new();
    desk.write("in.tar", tar(&[("bomb.png", &bomb), ("good.png", &plain((32, 32), [9; 3]))]));
    desk.prepare(&["in.tar"], &["--caption-from", "filename"]);
    assert_eq!(desk.open().captions(), ["good"]);
    let skipped = desk.skipped();
    assert!(skipped[0].0 == "bomb.png" && (skipped[0].1.contains("60000x60000") || skipped[0].1.contains("imit")), "{skipped:?}");
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}
