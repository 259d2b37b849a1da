//! `fold TARGET LAYER…`: folds directories in overlay form (newest first) into TARGET by
//! hard links, as a merge does, and prints what it did. One LAYER: a copy by links.
//! `cargo xtask bench copy` times it beside `cp -al`.

#![forbid(unsafe_code)]

use std::error::Error;
use std::path::PathBuf;
use varve_rootfs::merge::{Layer, fold};
use varve_sys::Dir;
use varve_sys::task::{Cancel, Silent};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let target = arguments.next().ok_or("usage: fold TARGET LAYER…")?;
    std::fs::create_dir(&target)?;
    // As a merge of layers that varve made and verified itself.
    let layer = |path: PathBuf| Dir::open(&path).map(|dir| Layer { dir, foreign: false });
    let layers = arguments.map(layer).collect::<Result<Vec<_>, _>>()?;
    let counts = fold(layers, &Dir::open(&target)?, true, &Silent, &Cancel::new())?;
    println!("{counts:?}");
    Ok(())
}
