//! The regular files of a tar archive, one after the other, from bytes that are not trusted.
//!
//! Nothing is ever written to disk: names are labels, never paths, and links, devices and folders are passed over. Long
//! names (GNU `L`, pax `path`) are read up to a limit. An archive that ends too early, or turns into nonsense, gives what is
//! whole before that place, and says so. Called by `archive`.

use std::io::{self, Read, Seek, SeekFrom};

use tar::{Archive, Entries, EntryType, PaxExtensions};

/// Longest name that is read.
const LONGEST_NAME: u64 = 4096;
/// Largest pax header that is read.
const LARGEST_PAX: u64 = 1 << 16;

/// A regular file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name, a label only.
    pub name: String,
    /// Where its bytes begin in the unpacked archive.
    pub offset: u64,
    /// How many bytes it has.
    pub size: u64,
}

/// How an archive ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As it should.
    Whole,
    /// Too early, or in nonsense: why.
    Cut(String),
}

/// Calls `found` with every regular file that is whole, and with its bytes where it has at most `keep(name)` of them.
pub fn walk(archive: impl Read, keep: impl Fn(&str) -> u64, found: impl FnMut(Member, Option<Vec<u8>>)) -> End {
    ended(Archive::new(archive).entries().and_then(|entries| through(entries, None, keep, found)))
}

/// As [`walk`], over the bytes between by seeking.
pub fn walk_seeking(mut archive: impl Read + Seek, keep: impl Fn(&str) -> u64, found: impl FnMut(Member, Option<Vec<u8>>)) -> End {
    let length = match archive.seek(SeekFrom::End(0)).and_then(|length| archive.rewind().map(|()| length)) {
        Ok(length) => length,
        Err(error) => return End::Cut(error.to_string()),
    };
    ended(Archive::new(archive).entries_with_seek().and_then(|entries| through(entries, Some(length), keep, found)))
}

fn ended(outcome: io::Result<()>) -> End {
    outcome.map_or_else(|error| End::Cut(error.to_string()), |()| End::Whole)
}

/// `length` is that of the archive where it can be seeked in.
fn through<R: Read>(
    entries: Entries<'_, R>,
    length: Option<u64>,
    keep: impl Fn(&str) -> u64,
    mut found: impl FnMut(Member, Option<Vec<u8>>),
) -> io::Result<()> {
    let mut long_name: Option<Vec<u8>> = None;
    for entry in entries.raw(true) {
        let mut entry = entry?;
        match entry.header().entry_type() {
            EntryType::GNULongName => {
                let size = entry.size();
                long_name = Some(limited(&mut entry, size, LONGEST_NAME, "a name")?);
            }
            EntryType::XHeader => {
                let size = entry.size();
                long_name = pax_name(&limited(&mut entry, size, LARGEST_PAX, "a pax header")?)?.or(long_name);
            }
            EntryType::XGlobalHeader | EntryType::GNULongLink => {}
            EntryType::Regular | EntryType::Continuous => {
                let name = long_name.take().unwrap_or_else(|| entry.header().path_bytes().into_owned());
                let name = String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(&name)).into_owned();
                let member = Member { name, offset: entry.raw_file_position(), size: entry.size() };
                let content = content(&member, &mut entry, length, &keep)?;
                if !member.name.ends_with('/') {
                    found(member, content);
                }
            }
            _ => long_name = None,
        }
    }
    Ok(())
}

/// The bytes of a member if they are wanted; an error if they are not all there.
fn content(member: &Member, entry: &mut impl Read, length: Option<u64>, keep: &impl Fn(&str) -> u64) -> io::Result<Option<Vec<u8>>> {
    let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, format!("it is cut short in {:?}", member.name));
    if member.size <= keep(&member.name) {
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        return if bytes.len() as u64 == member.size { Ok(Some(bytes)) } else { Err(cut()) };
    }
    let there = match length {
        Some(length) => member.offset.checked_add(member.size).is_some_and(|end| end <= length),
        None => io::copy(entry, &mut io::sink())? == member.size,
    };
    if there { Ok(None) } else { Err(cut()) }
}

fn limited(entry: &mut impl Read, size: u64, most: u64, what: &str) -> io::Result<Vec<u8>> {
    if size > most {
        return Err(io::Error::other(format!("{what} of more than {most} bytes")));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    if bytes.len() as u64 == size { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// The name in a pax header. A size there contradicts the one by which the next header is found.
fn pax_name(bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut name = None;
    for extension in PaxExtensions::new(bytes) {
        let extension = extension?;
        match extension.key_bytes() {
            b"path" if extension.value_bytes().len() as u64 <= LONGEST_NAME => name = Some(extension.value_bytes().to_vec()),
            b"path" => return Err(io::Error::other(format!("a name of more than {LONGEST_NAME} bytes"))),
            b"size" => return Err(io::Error::other("a file whose size is not in its plain header")),
            _ => {}
        }
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    type Files = Vec<(String, Option<Vec<u8>>)>;

    /// Both ways through an archive must agree.
    fn read(bytes: &[u8], keep: u64) -> (Files, End) {
        let (mut streamed, mut seeked) = (Vec::new(), Vec::new());
        let end = walk(bytes, |_| keep, |member, content| streamed.push((member, content)));
        walk_seeking(Cursor::new(bytes), |_| keep, |member, content| seeked.push((member, content)));
        assert_eq!(streamed, seeked);
        for (member, content) in &streamed {
            let place = &bytes[member.offset as usize..(member.offset + member.size) as usize];
            assert!(content.as_ref().is_none_or(|content| content == place));
        }
        (streamed.into_iter().map(|(member, content)| (member.name, content)).collect(), end)
    }

    #[test]
    fn files_come_with_their_bytes_where_they_are_wanted() {
        let long = format!("{}/a.jpg", "folder".repeat(40));
        let bytes = archive(&[("a.txt", b"red"), (&long, &[7; 1000]), ("empty", b"")]);
        let (files, end) = read(&bytes, 100);
        assert_eq!(files, [("a.txt".to_owned(), Some(b"red".to_vec())), (long, None), ("empty".to_owned(), Some(vec![]))]);
        assert_eq!(end, End::Whole);
    }

    #[test]
    fn what_is_whole_survives_a_cut_anywhere() {
        let bytes = archive(&[("a", &[1; 600]), ("b", &[2; 600]), ("c", &[3; 600])]);
        for length in 0..bytes.len() {
            let (files, end) = read(&bytes[..length], 0);
            let whole = (0..3).filter(|i| i * 1536 + 512 + 600 <= length).count();
            assert_eq!(files.len(), whole, "{length} bytes");
            let at_a_header = length % 1536 == 0;
            assert!(at_a_header || matches!(end, End::Cut(_)) || length >= 3 * 1536 - 424, "{length} bytes: {end:?}");
        }
    }

    #[test]
    fn links_and_devices_are_passed_over() {
        let mut builder = tar::Builder::new(Vec::new());
        for kind in [EntryType::Symlink, EntryType::Link, EntryType::Char, EntryType::Directory, EntryType::Regular] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_path("a.jpg").unwrap();
            header.set_link_name("/etc/passwd").unwrap();
            header.set_cksum();
            builder.append(&header, &b""[..]).unwrap();
        }
        assert_eq!(read(&builder.into_inner().unwrap(), 0).0.len(), 1);
    }

    #[test]
    fn hostile_headers_end_the_archive() {
        let header = |kind: EntryType, size: u64| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_path("x").unwrap();
            header.set_size(size);
            header.set_cksum();
            header.as_bytes().to_vec()
        };
        for (kind, size) in [(EntryType::GNULongName, 1 << 40), (EntryType::XHeader, 1 << 40), (EntryType::Regular, u64::MAX)] {
            let mut bytes = archive(&[("good", b"yes")])[..1024].to_vec();
            bytes.extend(header(kind, size));
            bytes.extend(std::iter::repeat_n(b'x', 1 << 18));
            let (files, end) = read(&bytes, 100);
            assert_eq!(files.len(), 1, "{kind:?}");
            assert!(matches!(end, End::Cut(_)), "{kind:?}");
        }
        assert!(matches!(read(&[b'n'; 2000], 0), (files, End::Cut(_)) if files.is_empty()));
    }
}
