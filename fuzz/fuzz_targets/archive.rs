//! A tar archive, read through and by seeking, which must find the same.
#![no_main]

use std::io::Cursor;

use ladd_fast::data::prepare::tar_members::{walk, walk_seeking};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let (mut through, mut seeking) = (Vec::new(), Vec::new());
    walk(input, |_| 4096, |member, content| through.push((member, content)));
    walk_seeking(Cursor::new(input), |_| 4096, |member, content| seeking.push((member, content)));
    assert_eq!(through, seeking);
    let whole = |member: &ladd_fast::data::prepare::tar_members::Member| member.offset + member.size <= input.len() as u64;
    assert!(through.iter().all(|(member, _)| whole(member)));
});
