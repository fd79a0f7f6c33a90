//! Keeps a panic within a library that reads files from becoming one of this program.
//!
//! `tokenizers` 0.23 and the crates below it expect a well-made `tokenizer.json`: a decoder or a normalizer they cannot make
//! sense of, or a table of characters that points out of itself, ends in a panic. Found by fuzzing (`fuzz/`).

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What `f` returns, or what it said as it panicked. Nothing is printed. `f` must leave nothing half done that is used later.
pub(super) fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |about| {
            if !GUARDED.get() {
                usual(about);
            }
        }));
    });
    let before = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(f));
    GUARDED.set(before);
    outcome.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref::<&str>().copied());
        text.unwrap_or("its reader gave up").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_the_next_one_is_seen() {
        assert_eq!(guarded(|| 3), Ok(3));
        assert_eq!(guarded(|| -> i32 { panic!("no {}", "table") }), Err("no table".to_owned()));
        assert!(!GUARDED.get());
    }
}
