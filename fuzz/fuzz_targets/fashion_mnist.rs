//! Fashion-MNIST's gzipped idx files.
#![no_main]

use ladd_fast::data::fashion_mnist::{FashionMnist, Split};
use ladd_fast_fuzz::{files, folder, judge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    files(&["images/t10k-images-idx3-ubyte.gz", "images/t10k-labels-idx1-ubyte.gz"], input);
    if let Some(data) = judge(FashionMnist::load(folder().join("images"), Split::Test)) {
        data.images(0..4);
    }
});
