//! Pictures in a WebDataset archive, `.tar` or gzipped: the files of a sample have one name and different endings. Called by
//! [`super::find`]; [`Stream`] reads the pictures afterwards, in the archive's order.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::names::{self, Kind};
use super::tar_members::{self, End};
use super::{Found, LARGEST_CAPTION, Picture, Place, caption_of, foreign};
use crate::{Error, Result};

const BUFFER: usize = 1 << 20;

pub(super) fn find(path: &Path, source: usize, found: &mut Found) -> Result<()> {
    let file = File::open(path).map_err(|source| Error::io("read", path, source))?;
    let (mut members, mut captions) = (Vec::new(), HashMap::new());
    let keep = |name: &str| if matches!(names::kind(name), Kind::Text | Kind::Json) { LARGEST_CAPTION } else { 0 };
    let collect = |member: tar_members::Member, content: Option<Vec<u8>>| {
        if let Some(bytes) = content.filter(|_| keep(&member.name) > 0) {
            captions.insert(members.len(), bytes);
        }
        members.push(member);
    };
    let end = match is_gzipped(path) {
        true => tar_members::walk(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(BufReader::new(file))), keep, collect),
        false => tar_members::walk_seeking(BufReader::new(file), keep, collect),
    };
    let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    let samples = names::samples(&names);
    if let End::Cut(cause) = end {
        if samples.is_empty() {
            return Err(Error::file(path, format!("holds no picture that is whole ({cause}): it is damaged, or no tar archive")));
        }
        found.damaged.push(format!("{}: is damaged after {} pictures ({cause})", path.display(), samples.len()));
    }
    let mut read = |place: usize| captions.get(&place).cloned().ok_or_else(|| format!("its caption has more than {LARGEST_CAPTION} bytes"));
    for sample in samples {
        let member = &members[sample.picture];
        if names::kind(&member.name) == Kind::Foreign {
            found.skip(path, &member.name, foreign(&member.name));
            continue;
        }
        match caption_of(sample.text.map(&mut read), sample.json.map(&mut read), None) {
            Ok(captions) => found.pictures.push(Picture {
                source,
                name: member.name.clone(),
                bytes: member.size,
                captions,
                held_out: false,
                original: None,
                named_original: None,
                place: Place::Member(member.offset),
            }),
            Err(reason) => found.skip(path, &member.name, reason),
        }
    }
    Ok(())
}

fn is_gzipped(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gz") || ending.eq_ignore_ascii_case("tgz"))
}

/// An archive that is read from the front to the back.
#[derive(Debug)]
pub(super) struct Stream {
    path: PathBuf,
    bytes: Bytes,
    position: u64,
}

#[derive(Debug)]
enum Bytes {
    Plain(File),
    Gzipped(Box<BufReader<MultiGzDecoder<BufReader<File>>>>),
}

impl Stream {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let bytes = match is_gzipped(path) {
            true => Bytes::Gzipped(Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(BufReader::new(file))))),
            false => Bytes::Plain(file),
        };
        Ok(Self { path: path.to_owned(), bytes, position: 0 })
    }

    /// The bytes at a place; cheap in the order of the archive.
    pub fn read(&mut self, offset: u64, count: u64) -> io::Result<Vec<u8>> {
        if offset < self.position {
            *self = Self::open(&self.path)?;
        }
        let mut content = Vec::new();
        match &mut self.bytes {
            Bytes::Plain(file) => {
                file.seek(SeekFrom::Start(offset))?;
                file.take(count).read_to_end(&mut content)?;
            }
            Bytes::Gzipped(stream) => {
                io::copy(&mut stream.take(offset - self.position), &mut io::sink())?;
                stream.take(count).read_to_end(&mut content)?;
            }
        }
        self.position = offset + content.len() as u64;
        if content.len() as u64 == count { Ok(content) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}
