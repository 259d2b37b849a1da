//! The key with which this device signs the layers that it exports.
//!
//! ```text
//! /varve/keys/layer.key   Ed25519, PKCS#8 (DER), for root alone; made by the first export
//! ```
//!
//! It is the device's, not a person's: layers belong to the device, and only its
//! administrator exports them. It signs layers and nothing else, no release among them, and
//! no device believes it before its owner named it.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use varve_format::layer_file::LayerKey;
use varve_sys::{Dir, durable};

use super::LayerError;
use crate::device::{Device, Writer};
use crate::error::Result;

const DIRECTORY: &str = "keys";
const FILE: &str = "layer.key";
/// The longest key that is read, in bytes.
const MAX_KEY: u64 = 4096;

/// The key, in memory.
pub(super) struct SigningKey {
    pair: Ed25519KeyPair,
    /// Whether it was made just now.
    pub(super) is_new: bool,
}

impl SigningKey {
    /// The public half.
    pub(super) fn public(&self) -> LayerKey {
        LayerKey(self.pair.public_key().as_ref().try_into().expect("Ed25519 keys have 32 bytes"))
    }

    pub(super) fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.pair.sign(bytes).as_ref().try_into().expect("Ed25519 signatures have 64 bytes")
    }
}

/// The public half of this device's key, if it has one.
pub(super) fn own(device: &Device) -> Result<Option<LayerKey>> {
    let Some(dir) = device.store.dir().open_dir_opt(DIRECTORY)? else { return Ok(None) };
    Ok(read(&dir)?.map(|key| key.public()))
}

/// This device's key; the first time it is made.
pub(super) fn own_or_new(device: &Device, _writer: &Writer) -> Result<SigningKey> {
    let varve = device.store.dir();
    let dir = varve.make_dir(DIRECTORY, 0o700)?;
    if let Some(key) = read(&dir)? {
        return Ok(key);
    }
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
        .map_err(|_| LayerError::Key { why: "there are no random numbers" })?;
    durable::replace_file(&dir, FILE, document.as_ref(), 0o600)?;
    durable::sync_directory(varve)?;
    let pair = parse(document.as_ref())?;
    Ok(SigningKey { pair, is_new: true })
}

fn read(dir: &Dir) -> Result<Option<SigningKey>> {
    let Some(bytes) = dir.read_opt(FILE, MAX_KEY)? else { return Ok(None) };
    Ok(Some(SigningKey { pair: parse(&bytes)?, is_new: false }))
}

fn parse(bytes: &[u8]) -> Result<Ed25519KeyPair, LayerError> {
    let why = "keys/layer.key is damaged: move it away, and the next export makes another";
    Ed25519KeyPair::from_pkcs8(bytes).map_err(|_| LayerError::Key { why })
}
