//! Signing keys: one file each, in a directory for each role.
//!
//! ```text
//! <keys>/root/root-1a2b3c4d.key            offline: on a stick in a drawer
//! <keys>/targets/targets-….key             may publish releases
//! <keys>/snapshot/…   <keys>/timestamp/…   may run on the server that refreshes them
//!        <role>/retired/…                  rotated out; no longer trusted
//! ```
//!
//! A file holds an Ed25519 key in PKCS#8 (DER), as OpenSSL reads it with `-inform DER`.
//! The root's directory may lie elsewhere than the others: it is needed only by `init`
//! and by `rotate`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::Ed25519KeyPair;
use serde::{Deserialize, Serialize};
use tough::key_source::KeySource;
use tough::schema::RoleType;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key;
use tough::sign::{Sign, parse_keypair};
use varve_sys::{Dir, durable};

use crate::error::{PublishError, Result};

/// The roles of The Update Framework that Varve uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Says which keys the other roles have.
    Root,
    /// Says which releases there are.
    Targets,
    /// Says which version of the list of releases is the current one.
    Snapshot,
    /// Says which snapshot is the current one, and that this is recent.
    Timestamp,
}

impl Role {
    /// All of them, the most powerful first.
    pub const ALL: [Role; 4] = [Role::Root, Role::Targets, Role::Snapshot, Role::Timestamp];

    /// Its name, as files and commands spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Root => "root",
            Role::Targets => "targets",
            Role::Snapshot => "snapshot",
            Role::Timestamp => "timestamp",
        }
    }

    pub(crate) fn tuf(self) -> RoleType {
        match self {
            Role::Root => RoleType::Root,
            Role::Targets => RoleType::Targets,
            Role::Snapshot => RoleType::Snapshot,
            Role::Timestamp => RoleType::Timestamp,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Role::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| {
            format!("{text:?} is not a role: root, targets, snapshot or timestamp is expected")
        })
    }
}

/// Where the signing keys lie.
#[derive(Debug, Clone)]
pub struct KeyDirs {
    /// The directory of the root's keys.
    pub root: PathBuf,
    /// The directory that holds a directory for each other role.
    pub online: PathBuf,
}

impl KeyDirs {
    /// All roles below one directory.
    pub fn below(directory: &Path) -> Self {
        Self { root: directory.join("root"), online: directory.to_owned() }
    }

    /// The directory of one role's keys.
    pub fn of(&self, role: Role) -> PathBuf {
        match role {
            Role::Root => self.root.clone(),
            _ => self.online.join(role.as_str()),
        }
    }
}

/// A signing key that is in memory.
#[derive(Clone)]
pub struct SigningKey {
    pkcs8: Vec<u8>,
    path: PathBuf,
    id: String,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("path", &self.path)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Makes a new key and writes it durably into the role's directory, which is made if
    /// missing, readable by its owner alone.
    pub fn generate(dirs: &KeyDirs, role: Role) -> Result<Self> {
        let path = dirs.of(role);
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| {
            PublishError::Key { path: path.clone(), reason: "no random numbers".into() }
        })?;
        let mut key = Self::parse(document.as_ref(), &path)?;
        let dir = make_directories(&path)?;
        let name = format!("{role}-{}.key", &key.id[..8]);
        durable::replace_file(&dir, &name, &key.pkcs8, 0o600)?;
        key.path = path.join(name);
        Ok(key)
    }

    /// Reads every key of a role; none when the directory is missing.
    pub fn load_all(dirs: &KeyDirs, role: Role) -> Result<Vec<Self>> {
        let path = dirs.of(role);
        let dir = match Dir::open(&path) {
            Ok(dir) => dir,
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut keys = Vec::new();
        for entry in dir.names()? {
            if entry
                .name
                .to_str()
                .is_some_and(|name| name.ends_with(".key") && !name.starts_with('.'))
            {
                let bytes = dir.read(&entry.name, 64 << 10)?;
                keys.push(Self::parse(&bytes, &path.join(&entry.name))?);
            }
        }
        Ok(keys)
    }

    fn parse(pkcs8: &[u8], path: &Path) -> Result<Self> {
        let bad = |reason: String| PublishError::Key { path: path.to_owned(), reason };
        let pair = parse_keypair(pkcs8).map_err(|error| bad(error.to_string()))?;
        let id = pair.tuf_key().key_id().map_err(|error| bad(error.to_string()))?;
        let id = varve_format::id::to_hex(id.as_ref());
        Ok(Self { pkcs8: pkcs8.to_vec(), path: path.to_owned(), id })
    }

    /// Its TUF key identifier, in hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The file it lies in.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The public half, as root metadata lists it.
    pub(crate) fn public(&self) -> Result<(Decoded<Hex>, Key)> {
        let bad = |reason: String| PublishError::Key { path: self.path.clone(), reason };
        let key = parse_keypair(&self.pkcs8).map_err(|error| bad(error.to_string()))?.tuf_key();
        let id = key.key_id().map_err(|error| bad(error.to_string()))?;
        Ok((id, key))
    }

    /// Moves the file aside, to `retired/`: it signs nothing any more.
    pub(crate) fn retire(&self) -> Result<()> {
        let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Ok(());
        };
        let dir = Dir::open(parent)?;
        let retired = dir.make_dir("retired", 0o700)?;
        dir.rename_over(name, &retired, name)?;
        durable::sync_directory(&retired)?;
        durable::sync_directory(&dir)?;
        Ok(())
    }
}

/// tough asks a source for a key each time it signs; the key itself is in memory.
#[tough::async_trait]
impl KeySource for SigningKey {
    async fn as_sign(
        &self,
    ) -> std::result::Result<Box<dyn Sign>, Box<dyn std::error::Error + Send + Sync + 'static>>
    {
        Ok(Box::new(parse_keypair(&self.pkcs8)?))
    }

    async fn write(
        &self,
        _value: &str,
        _key_id_hex: &str,
    ) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Err("keys are written when they are made, and never changed".into())
    }
}

/// Opens a directory by path, making what is missing of it, for its owner alone.
fn make_directories(path: &Path) -> Result<Dir> {
    match Dir::open(path) {
        Err(error) if error.is_not_found() => {}
        other => return Ok(other?),
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Dir::open(path)?);
    };
    let parent =
        if parent.as_os_str().is_empty() { Dir::open(".")? } else { make_directories(parent)? };
    let dir = parent.make_dir(name, 0o700)?;
    durable::sync_directory(&parent)?;
    Ok(dir)
}
