//! The user of a device: what he writes into the running system, and what he must find
//! again after a cut.
//!
//! ```text
//! /etc/user-N     files of his own, all of one generation
//! /etc/settings   a file of the release in which he changed a line: merged with what the
//!                 next release changed in it
//! /home/work      shared by all deployments
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use varve_sys::{Dir, durable};

use crate::machine::{Running, words};
use crate::releases;
use crate::scenario::Site;

/// How many files of his own he has in /etc.
const FILES: usize = 8;
const SETTINGS: &str = "/etc/settings";
/// Shared by all systems.
const WORK: &str = "/home/work";
/// The line of the settings that he changes.
const MINE: &str = "option 25 = ";

/// Writes a file as any program would.
pub(crate) fn plain_file(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let file = File::options().write(true).create(true).truncate(true).open(path);
    file.and_then(|mut file| file.write_all(bytes)).map_err(words)
}

fn text(generation: &str, number: usize) -> String {
    format!("{generation} {number}\n").repeat(200 + 300 * number)
}

fn settings(release: &str, generation: Option<&str>) -> String {
    let all = releases::settings(release);
    let Some(generation) = generation else { return all };
    let line = |line: &str| match line.strip_prefix(MINE) {
        Some(_) => format!("{MINE}{generation}\n"),
        None => format!("{line}\n"),
    };
    all.lines().map(line).collect()
}

/// He changes files in /etc and /home of the running system, and has them synced.
pub(crate) fn writes(
    running: &Running,
    site: &Site,
    release: &str,
    generation: &str,
) -> Result<(), String> {
    for number in 0..FILES {
        let path = running.path(&format!("/etc/user-{number}"));
        plain_file(&path, text(generation, number).as_bytes())?;
    }
    plain_file(&running.path(SETTINGS), settings(release, Some(generation)).as_bytes())?;
    // Once: whoever writes over a file without care may find it torn, whatever system runs.
    if !running.path(WORK).exists() {
        plain_file(&running.path(WORK), text("work", 3).as_bytes())?;
    }
    durable::sync_file_system(&Dir::open(&site.disk).map_err(words)?).map_err(words)
}

/// Which generation of his files the running system shows; all must be of one. None: he
/// has none in /etc, and the release's own is untouched.
pub(crate) fn generation(running: &Running, release: &str) -> Result<Option<&'static str>, String> {
    // Of a disk that gives errors "it cannot be read" is another finding than "it is not there".
    let read = |path: &str| match fs::read(running.path(path)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("the user's file {path}: {error}")),
    };
    if read(WORK)?.unwrap_or_default() != text("work", 3).as_bytes() {
        return Err("the user's file in /home is not what it was".to_owned());
    }
    let mine = (0..FILES).map(|number| read(&format!("/etc/user-{number}")));
    let mine: Vec<Option<Vec<u8>>> = mine.collect::<Result<_, _>>()?;
    let set = read(SETTINGS)?.unwrap_or_default();
    let is_set = |generation: Option<&str>| set == settings(release, generation).as_bytes();
    let shows = |generation: &str| {
        let is = |(number, bytes): (usize, &Option<Vec<u8>>)| {
            bytes.as_deref() == Some(text(generation, number).as_bytes())
        };
        mine.iter().enumerate().all(is) && is_set(Some(generation))
    };
    if let Some(generation) = ["first", "second"].into_iter().find(|name| shows(name)) {
        return Ok(Some(generation));
    }
    let none = mine.iter().all(Option::is_none) && is_set(None);
    if none { Ok(None) } else { Err("the user's files in /etc are neither old nor new".to_owned()) }
}
