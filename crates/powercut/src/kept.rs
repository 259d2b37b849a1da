//! A failing state as one file, which can be judged again anywhere.
//!
//! ```text
//! <scenario>-<fs>-<state>.tar.zst
//!   state.json        what it is, what was marked, what was found
//!   disk/<offset>     the runs of the disk that are no hole; the name is hexadecimal
//!   outside/...       the repository and whatever else stood beside the disk
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{At, Result, RigError};
use crate::scenario::Finding;

const VERSION: u32 = 1;
/// The most that one member holds, in bytes.
const RUN: u64 = 16 << 20;

/// What is told about a kept state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    /// Of this file's form.
    pub version: u32,
    /// The scenario's name.
    pub scenario: String,
    /// The file system's name.
    pub file_system: String,
    /// Which state of the recording: `4t512.9`, or `4 then 7p2` for a cut during the
    /// recovery from a cut.
    pub state: String,
    /// The safety step that was taken out, if one was.
    pub fault: Option<String>,
    /// What the scenario knew.
    pub facts: Value,
    /// What had happened before the cut.
    pub marks: Vec<String>,
    /// What was found.
    pub findings: Vec<Finding>,
    /// Size of the disk, in bytes.
    pub size: u64,
}

impl About {
    /// With the version filled in.
    pub fn new(scenario: &str, file_system: &str, state: String) -> Self {
        Self {
            version: VERSION,
            scenario: scenario.to_owned(),
            file_system: file_system.to_owned(),
            state,
            fault: None,
            facts: Value::Null,
            marks: Vec::new(),
            findings: Vec::new(),
            size: 0,
        }
    }

    fn file_name(&self) -> String {
        let state = self.state.replace(' ', "-");
        format!("{}-{}-{state}.tar.zst", self.scenario, self.file_system)
    }
}

/// Writes a state below `dir`; returns the file.
pub fn keep(dir: &Path, mut about: About, image: &Path, outside: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(dir).at("make the directory", dir)?;
    let disk = File::open(image).at("open", image)?;
    about.size = disk.metadata().at("examine", image)?.len();
    let path = dir.join(about.file_name());
    write(&path, &about, &disk, outside).at("write", &path)?;
    Ok(path)
}

fn write(path: &Path, about: &About, disk: &File, outside: &Path) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(true).open(path)?;
    let mut tar = tar::Builder::new(zstd::Encoder::new(file, 3)?);
    tar.follow_symlinks(false);
    let json = serde_json::to_vec_pretty(about).map_err(io::Error::other)?;
    append(&mut tar, "state.json", &json)?;
    let mut at = 0;
    while at < about.size {
        let start = match rustix::fs::seek(disk, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(disk, SeekFrom::Hole(start))?.min(start + RUN);
        let mut bytes = vec![0; usize::try_from(end - start).expect("at most RUN")];
        disk.read_exact_at(&mut bytes, start)?;
        append(&mut tar, &format!("disk/{start:x}"), &bytes)?;
        at = end;
    }
    if outside.is_dir() {
        tar.append_dir_all("outside", outside)?;
    }
    tar.into_inner()?.finish()?;
    Ok(())
}

fn append(tar: &mut tar::Builder<impl io::Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, bytes)
}

/// Lays a kept state out: the disk at `image` (a new file), the rest below `outside`.
pub fn unpack(path: &Path, image: &Path, outside: &Path) -> Result<About> {
    let bad = |why: String| RigError::Replay { path: path.to_owned(), why };
    let file = File::open(path).at("open", path)?;
    let decoder = zstd::Decoder::new(file).map_err(|error| bad(error.to_string()))?;
    let mut tar = tar::Archive::new(decoder);
    tar.set_preserve_permissions(true);
    let options = File::options().write(true).create_new(true).clone();
    let disk = options.open(image).at("create", image)?;
    let mut about = None;
    for member in tar.entries().map_err(|error| bad(error.to_string()))? {
        let mut member = member.map_err(|error| bad(error.to_string()))?;
        let name = member.path().map_err(|error| bad(error.to_string()))?.into_owned();
        if let Ok(beside) = name.strip_prefix("outside") {
            let target = outside.join(beside);
            member.unpack(&target).at("unpack", &target)?;
            continue;
        }
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes).map_err(|error| bad(error.to_string()))?;
        if name == Path::new("state.json") {
            let read: About =
                serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
            if read.version != VERSION {
                return Err(bad(format!("version {}, not {VERSION}", read.version)));
            }
            disk.set_len(read.size).at("set the length of", image)?;
            about = Some(read);
        } else {
            let offset = name.strip_prefix("disk").ok().and_then(|name| name.to_str());
            let offset = offset.and_then(|name| u64::from_str_radix(name, 16).ok());
            let offset = offset.ok_or_else(|| bad(format!("a member {}", name.display())))?;
            disk.write_all_at(&bytes, offset).at("write", image)?;
        }
    }
    about.ok_or_else(|| bad("it has no state.json".to_owned()))
}
