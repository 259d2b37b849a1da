//! The target of this program's name.

#![no_main]

use std::sync::LazyLock;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static TARGET: LazyLock<varve_fuzz::Target> = LazyLock::new(|| {
        varve_fuzz::target(env!("CARGO_BIN_NAME")).expect("a target has the name of its program")
    });
    (TARGET.run)(bytes);
});
