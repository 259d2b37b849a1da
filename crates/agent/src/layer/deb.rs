//! A Debian package: deb(5), an ar(1) archive with `control.tar` and `data.tar`.
//!
//! Its files come into the layer; its control files go where dpkg keeps them. Its scripts
//! are *not* run: whoever adds a package learns which it has. `varve layer run` installs
//! one as its maker means it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::Serialize;
use varve_format::TreePath;
use varve_format::tree::Metadata;
use varve_rootfs::compose::Composer;
use varve_rootfs::resolve::Resolver;

use super::LayerError;
use super::archive::{self, Budget, Rules};
use super::dpkg::{self, Stanza};

/// What an ar(1) archive begins with.
pub(super) const MAGIC: &[u8] = b"!<arch>\n";
/// The longest control file that is read, in bytes.
const MAX_CONTROL: u64 = 4 << 20;
/// The control files that are programs.
const SCRIPTS: [&str; 5] = ["preinst", "postinst", "prerm", "postrm", "config"];

/// A package that was put into a layer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its scripts; none of them was run.
    pub scripts_not_run: Vec<String>,
    /// Whether dpkg will know it: the system has dpkg's database.
    pub registered: bool,
}

/// Puts a package into a layer; gives what dpkg is to be told of it.
pub(super) fn add(
    path: &Path,
    composer: &mut Composer<'_>,
    system: &mut Resolver,
    budget: &mut Budget,
    rules: &Rules<'_>,
) -> Result<(Package, Stanza), LayerError> {
    let read = LayerError::read(path);
    let mut file = File::open(path).map_err(&read)?;
    let members = members(&mut file, rules)?;
    let find = |name: &str| {
        let fits = |member: &&Member| {
            member.name == name
                || member.name.strip_prefix(name).is_some_and(|r| r.starts_with('.'))
        };
        members.iter().find(fits).ok_or_else(|| rules.bad(format!("it has no {name}")))
    };
    let controls = {
        let member = find("control.tar")?;
        file.seek(SeekFrom::Start(member.at)).map_err(&read)?;
        controls((&file).take(member.size), rules)?
    };
    let text = controls.iter().find(|(name, _)| name == "control").map(|(_, bytes)| bytes);
    let text = text.ok_or_else(|| rules.bad("it has no control file"))?;
    let control = Stanza::parse(&String::from_utf8_lossy(text));
    let prefix = dpkg::info_name(&control)
        .ok_or_else(|| rules.bad("its control file names no package as dpkg allows it"))?;

    let member = find("data.tar")?;
    file.seek(SeekFrom::Start(member.at)).map_err(&read)?;
    let stream = archive::plain((&file).take(member.size)).map_err(&read)?;
    let paths = archive::tar(stream, composer, budget, rules)?;

    let is_script = |name: &str| SCRIPTS.contains(&name);
    let scripts: Vec<String> =
        controls.iter().map(|(name, _)| name.clone()).filter(|name| is_script(name)).collect();
    let registered = system.open(dpkg::STATUS.as_bytes())?.is_some();
    if registered {
        let info = |name: &str| {
            let path = format!("{}/{prefix}.{name}", dpkg::INFO);
            TreePath::new(path.as_bytes()).map_err(|error| rules.bad(error.to_string()))
        };
        let mut put = |name: &str, bytes: &[u8]| {
            budget.take(bytes.len() as u64)?;
            let mode = if is_script(name) { 0o755 } else { 0o644 };
            let meta = Metadata { mode, ..Metadata::default() };
            let written = composer.file(&info(name)?, &meta, |file| file.write_all(bytes));
            written.map_err(|error| rules.compose(error))
        };
        for (name, bytes) in controls.iter().filter(|(name, _)| name != "control") {
            put(name, bytes)?;
        }
        let list: Vec<Vec<u8>> = paths
            .iter()
            .map(|path| match path.is_root() {
                true => b"/.\n".to_vec(),
                false => [b"/", path.as_bytes(), b"\n"].concat(),
            })
            .collect();
        put("list", &list.concat())?;
    }
    let get = |name| control.get(name).unwrap_or_default().to_owned();
    let package = Package {
        name: get("Package"),
        version: get("Version"),
        scripts_not_run: scripts.clone(),
        registered,
    };
    Ok((package, dpkg::unpacked(&control, !scripts.is_empty())))
}

struct Member {
    name: String,
    at: u64,
    size: u64,
}

/// The table of an ar(1) archive.
fn members(file: &mut File, rules: &Rules<'_>) -> Result<Vec<Member>, LayerError> {
    let length = file.metadata().map_err(LayerError::read(rules.source))?.len();
    let mut members = Vec::new();
    let mut at = MAGIC.len() as u64;
    while at + 60 <= length && members.len() < 64 {
        let mut header = [0; 60];
        file.seek(SeekFrom::Start(at))
            .and_then(|_| file.read_exact(&mut header))
            .map_err(LayerError::read(rules.source))?;
        let text = |range: std::ops::Range<usize>| {
            String::from_utf8_lossy(&header[range]).trim().to_owned()
        };
        let size: Option<u64> = text(48..58).parse().ok();
        let size = size.filter(|size| header[58..] == *b"`\n" && at + 60 + size <= length);
        let size = size.ok_or_else(|| rules.bad("its table is damaged"))?;
        let name = text(0..16).trim_end_matches('/').to_owned();
        members.push(Member { name, at: at + 60, size });
        at += 60 + size + size % 2;
    }
    Ok(members)
}

/// The files of `control.tar`, by their names.
fn controls(stream: impl Read, rules: &Rules<'_>) -> Result<Vec<(String, Vec<u8>)>, LayerError> {
    let broken = |error: std::io::Error| rules.bad(format!("its control.tar is damaged: {error}"));
    let plain = archive::plain(stream).map_err(broken)?;
    let mut archive = tar::Archive::new(plain.take(4 * MAX_CONTROL));
    let mut files = Vec::new();
    for entry in archive.entries().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        let path = archive::tree_path(&entry.path_bytes()).map_err(|why| rules.bad(why))?;
        let name = String::from_utf8_lossy(path.as_bytes()).into_owned();
        let plain_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        if !entry.header().entry_type().is_file() || !plain_name || entry.size() > MAX_CONTROL {
            continue;
        }
        let mut bytes = Vec::new();
        entry.take(MAX_CONTROL).read_to_end(&mut bytes).map_err(broken)?;
        files.push((name, bytes));
    }
    Ok(files)
}
