//! Where things are, and how programs are run: one line said, output shown on failure.

use sha2::{Digest, Sha256};
use std::error::Error;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The result of a command of this program.
pub(crate) type Result<T = (), E = Box<dyn Error>> = std::result::Result<T, E>;

/// The folder of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// Where everything is kept that takes long to make. `VARVE_CACHE` puts it elsewhere.
pub(crate) fn cache() -> Result<PathBuf> {
    let folder =
        std::env::var_os("VARVE_CACHE").map_or_else(|| root().join("target/varve"), PathBuf::from);
    fs::create_dir_all(&folder)?;
    Ok(folder.canonicalize()?)
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> Result<PathBuf> {
    let text = output(cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    Ok(metadata["target_directory"]
        .as_str()
        .ok_or("cargo metadata names no target directory")?
        .into())
}

/// cargo, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// A program with arguments; the tools of the file system are found without a root's PATH.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
    command.env("LC_ALL", "C.UTF-8");
    command
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a command whose output the user wants to see.
pub(crate) fn show(command: &mut Command) -> Result {
    let status =
        command.status().map_err(|error| format!("cannot run {}: {error}", words(command)))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} failed ({status})", words(command)).into())
    }
}

/// Runs a command and gives its standard output; what it said is in the error if it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {}: {error}", words(command)))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let start = said.char_indices().rev().nth(4000).map_or(0, |(at, _)| at);
    Err(format!("{} failed ({}):\n{}", words(command), output.status, &said[start..]).into())
}

fn words(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for word in command.get_args() {
        let _ = write!(text, " {}", word.to_string_lossy());
    }
    text.chars().take(300).collect()
}

/// Runs a step, saying what it is before and how long it took after.
pub(crate) fn step<T>(what: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let begin = Instant::now();
    eprintln!("  {what} …");
    let result = act()?;
    eprintln!("  {what}: {}", seconds(begin.elapsed()));
    Ok(result)
}

pub(crate) fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{:.0} ms", time.as_secs_f64() * 1e3)
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// A short name for what something was made of.
pub(crate) fn key<I: AsRef<[u8]>>(parts: impl IntoIterator<Item = I>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.as_ref().len() as u64).to_le_bytes());
        hash.update(part.as_ref());
    }
    hash.finalize().iter().take(6).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The digest of a file's content.
pub(crate) fn file_key(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(key([hash.finalize().as_slice()])),
            length => hash.update(&chunk[..length]),
        }
    }
}

/// Writes a file of the cache. The cache is made again when it is wrong, so nothing here
/// is synced.
#[expect(clippy::disallowed_methods, reason = "a cache of the build, not a device's file")]
pub(crate) fn write(path: &Path, text: impl AsRef<[u8]>) -> Result {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// Puts a finished thing of the cache in its place.
#[expect(clippy::disallowed_methods, reason = "a cache of the build, not a device's file")]
pub(crate) fn rename(from: &Path, to: &Path) -> Result {
    fs::rename(from, to)
        .map_err(|error| format!("{} -> {}: {error}", from.display(), to.display()).into())
}
