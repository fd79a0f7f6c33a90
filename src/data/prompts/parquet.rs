//! Prompts of a parquet table: one column of text. Nothing else of the table is read.
//!
//! Damaged tables can make the library panic; that counts as damage here.

use std::panic::{self, AssertUnwindSafe};

use ::parquet::basic::Type;
use ::parquet::column::reader::ColumnReader;
use ::parquet::data_type::ByteArray;
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{ChunkReader, FileReader, RowGroupReader, SerializedFileReader};
use bytes::Bytes;

use super::{BadPrompts, USUAL, kept, missing};

/// Rows that are read at once.
const ROWS: usize = 4096;

/// Prompts of a table in memory, the column `key`; empty stands for the first of `prompt`, `text`, `caption`.
///
/// # Errors
/// When the bytes are no parquet table, there is no such column, it is not text, or a row is not UTF-8.
pub fn parse_parquet(bytes: Vec<u8>, key: &str) -> Result<Vec<String>, BadPrompts> {
    parse(Bytes::from(bytes), key)
}

/// The same of a file or whatever else can be read in pieces.
pub(super) fn parse<R: ChunkReader + 'static>(source: R, key: &str) -> Result<Vec<String>, BadPrompts> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let read = panic::catch_unwind(AssertUnwindSafe(|| read(source, key)));
    panic::set_hook(hook);
    read.unwrap_or_else(|_| Err(damaged("its pages contradict each other")))
}

fn read<R: ChunkReader + 'static>(source: R, key: &str) -> Result<Vec<String>, BadPrompts> {
    let table = SerializedFileReader::new(source).map_err(broken)?;
    let column = column(&table, key)?;
    let mut prompts = Vec::new();
    let mut row = 0;
    for group in 0..table.num_row_groups() {
        let group = table.get_row_group(group).map_err(broken)?;
        read_group(&*group, column, &mut row, &mut prompts)?;
    }
    Ok(prompts)
}

/// The place of the prompts' column among the table's leaves.
fn column<R: ChunkReader + 'static>(table: &SerializedFileReader<R>, key: &str) -> Result<usize, BadPrompts> {
    let schema = table.metadata().file_metadata().schema_descr();
    let names: Vec<String> = schema.columns().iter().map(|column| column.path().string()).collect();
    let wanted = if key.is_empty() { &USUAL[..] } else { &[key][..] };
    let Some(place) = wanted.iter().find_map(|name| names.iter().position(|other| other == name)) else {
        return Err(BadPrompts(missing(key, names.iter().map(String::as_str))));
    };
    let column = schema.column(place);
    if column.physical_type() != Type::BYTE_ARRAY || column.max_rep_level() > 0 {
        return Err(BadPrompts(format!("column `{}` holds {}, where text is expected", names[place], column.physical_type())));
    }
    Ok(place)
}

fn read_group(group: &dyn RowGroupReader, column: usize, row: &mut usize, prompts: &mut Vec<String>) -> Result<(), BadPrompts> {
    let ColumnReader::ByteArrayColumnReader(mut reader) = group.get_column_reader(column).map_err(broken)? else {
        return Err(damaged("a column changes its type"));
    };
    let optional = group.metadata().column(column).column_descr().max_def_level();
    let (mut values, mut levels) = (Vec::<ByteArray>::new(), Vec::<i16>::new());
    loop {
        values.clear();
        levels.clear();
        let (records, ..) = reader.read_records(ROWS, Some(&mut levels), None, &mut values).map_err(broken)?;
        if records == 0 {
            return Ok(());
        }
        let mut texts = values.iter();
        for record in 0..records {
            *row += 1;
            if optional > 0 && levels.get(record).is_none_or(|level| *level < optional) {
                continue; // null
            }
            let Some(text) = texts.next() else { break };
            let text = std::str::from_utf8(text.data()).map_err(|_| BadPrompts(format!("row {row}: is not UTF-8 text")))?;
            prompts.extend(kept(text));
        }
    }
}

fn broken(error: ParquetError) -> BadPrompts {
    let text = error.to_string();
    let codec = ["ZSTD", "BROTLI", "LZO"].iter().find(|codec| text.to_ascii_uppercase().contains(*codec));
    match codec {
        Some(codec) => {
            BadPrompts(format!("is compressed with {codec}, which is not read here: write it again with snappy, gzip, lz4 or uncompressed"))
        }
        None => damaged(text.lines().next().unwrap_or("unreadable")),
    }
}

fn damaged(cause: &str) -> BadPrompts {
    BadPrompts(format!("is no parquet table that can be read ({cause}): it is damaged, or another kind of file"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ::parquet::basic::Compression;
    use ::parquet::data_type::{ByteArrayType, Int32Type};
    use ::parquet::file::properties::WriterProperties;
    use ::parquet::file::writer::SerializedFileWriter;
    use ::parquet::schema::parser::parse_message_type;
    use proptest::prelude::*;

    use super::*;

    /// A table of numbers and texts in row groups; `None` is null.
    fn table(name: &str, groups: &[&[Option<&[u8]>]], compression: Compression) -> Vec<u8> {
        let schema = format!("message m {{ required int32 n; optional byte_array {name} (UTF8); }}");
        let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
        let mut bytes = Vec::new();
        let mut file = SerializedFileWriter::new(&mut bytes, Arc::new(parse_message_type(&schema).unwrap()), properties).unwrap();
        for rows in groups {
            let mut group = file.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let numbers: Vec<i32> = (0..rows.len() as i32).collect();
            column.typed::<Int32Type>().write_batch(&numbers, None, None).unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let values: Vec<ByteArray> = rows.iter().flatten().map(|text| ByteArray::from(text.to_vec())).collect();
            let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.is_some())).collect();
            column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        file.close().unwrap();
        bytes
    }

    #[test]
    fn a_column_of_text_is_read() {
        for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::GZIP(Default::default()), Compression::LZ4_RAW] {
            let groups: [&[Option<&[u8]>]; 2] = [&[Some(b"a bag"), None, Some(b" ")], &[Some("café ".as_bytes()), Some(b"a bag")]];
            let bytes = table("caption", &groups, compression);
            assert_eq!(parse_parquet(bytes.clone(), "").unwrap(), ["a bag", "café", "a bag"]);
            assert_eq!(parse_parquet(bytes, "caption").unwrap().len(), 3);
        }
        let many: Vec<Vec<u8>> = (0..10_000).map(|i| format!("prompt {i}").into_bytes()).collect();
        let rows: Vec<Option<&[u8]>> = many.iter().map(|row| Some(row.as_slice())).collect();
        let read = parse_parquet(table("text", &[&rows], Compression::SNAPPY), "").unwrap();
        assert!(read.len() == 10_000 && read[9_999] == "prompt 9999");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let rows: [&[Option<&[u8]>]; 1] = [&[Some(b"a"), Some(b"\xff")]];
        let bytes = table("title", &rows, Compression::UNCOMPRESSED);
        let says = |bytes: Vec<u8>, key: &str, cause: &str| {
            let error = parse_parquet(bytes, key).unwrap_err().to_string();
            assert!(error.contains(cause) && !error.contains('\n'), "{error}");
        };
        says(bytes.clone(), "", "none of `prompt`, `text` and `caption` (there is: n, title)");
        says(bytes.clone(), "n", "column `n` holds INT32");
        says(bytes.clone(), "title", "row 2: is not UTF-8");
        says(bytes[..bytes.len() / 2].to_vec(), "title", "is no parquet table");
        says(Vec::new(), "", "is no parquet table");
        says(b"a bag\nankle boot\n".to_vec(), "", "is no parquet table");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn no_damage_panics(position in 0usize..2000, value: u8, cut in 0usize..2000) {
            let rows: [&[Option<&[u8]>]; 1] = [&[Some(b"a bag"), None, Some(b"an ankle boot, an ankle boot")]];
            let mut bytes = table("text", &rows, Compression::SNAPPY);
            let position = position % bytes.len();
            bytes[position] = value;
            let _ = parse_parquet(bytes.clone(), "");
            bytes.truncate(cut % bytes.len());
            let _ = parse_parquet(bytes, "");
        }
    }
}
