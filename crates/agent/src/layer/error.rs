//! Why something about the user's own layers was not done.

use std::path::PathBuf;

use varve_fetch::layer_file::OpenError;
use varve_format::deployment::LayerKind;
use varve_format::{LayerName, TreePath};
use varve_pack::WriteError;
use varve_rootfs::compose::ComposeError;
use varve_rootfs::given::ScanError;
use varve_rootfs::merge::FoldError;
use varve_sys::SysError;

/// Why not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// No layer has this name or title.
    #[error("there is no layer {name:?}")]
    NoLayer {
        /// What was asked for.
        name: String,
    },
    /// Several layers have this title.
    #[error("several layers are called {title:?}: use the layer's name")]
    Ambiguous {
        /// What was asked for.
        title: String,
    },
    /// A layer of the release.
    #[error("{name} is a layer of the release ({kind}), not one of yours")]
    NotOwn {
        /// Which.
        name: LayerName,
        /// What it is.
        kind: LayerKind,
    },
    /// The name is in use.
    #[error("there is a layer {name} already")]
    Taken {
        /// Which.
        name: LayerName,
    },
    /// The deployment does not have this layer.
    #[error("{name} is not in the stack that boots next")]
    NotInStack {
        /// Which.
        name: LayerName,
    },
    /// It is so already.
    #[error("nothing would change")]
    NothingChanges,
    /// A title that does not fit into a list.
    #[error("{title:?} is no title: 1 to 60 printable characters are expected")]
    Title {
        /// What was given.
        title: String,
    },
    /// There is no writable top, or nothing in it.
    #[error("there is nothing to capture: {why}")]
    NothingToCapture {
        /// Why.
        why: String,
    },
    /// The changes could not be copied.
    #[error("the changes could not be copied")]
    Capture(#[source] FoldError),
    /// A source is nothing that a layer can be made of.
    #[error("{path} cannot become a layer: {why}", path = path.display())]
    Source {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A source cannot be read.
    #[error("{path} cannot be read", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What a source holds cannot lie over this system.
    #[error("{path} cannot lie over this system", path = path.display())]
    Compose {
        /// Which source.
        path: PathBuf,
        /// Why.
        source: ComposeError,
    },
    /// A device node, which this device does not take.
    #[error("device nodes are forbidden on this device, and there is one at {path}")]
    Device {
        /// Where.
        path: TreePath,
    },
    /// More than there is room for.
    #[error("there is no room for it: {free} bytes may be used")]
    Room {
        /// Bytes that may be used, without the reserve.
        free: u64,
    },
    /// More paths than there are inodes for.
    #[error("there are too few inodes for it: {free} may be used")]
    Inodes {
        /// Inodes that may be used.
        free: u64,
    },
    /// The command did not end well: nothing is kept.
    #[error("{command} ended with {status}; nothing of it is kept")]
    Command {
        /// Which.
        command: String,
        /// How.
        status: String,
    },
    /// The command changed nothing.
    #[error("{command} changed nothing that a layer keeps")]
    NoChange {
        /// Which.
        command: String,
    },
    /// A layer file is not taken.
    #[error(transparent)]
    File(OpenError),
    /// A layer cannot be told in a manifest.
    #[error(transparent)]
    Scan(ScanError),
    /// A layer file could not be written.
    #[error(transparent)]
    Pack(WriteError),
    /// More than the header of a layer file holds.
    #[error("{count} directories of the layer hide others: more than a layer file can say")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// The file is there.
    #[error("{path} is there already", path = path.display())]
    Exists {
        /// Which file.
        path: PathBuf,
    },
    /// This device's key cannot be used.
    #[error("this device's key for layers cannot be used: {why}")]
    Key {
        /// Why.
        why: &'static str,
    },
    /// What was written is not what was signed: the disk, or this program, is at fault.
    #[error("what was written is not what the file holds; nothing of it is kept")]
    NotAsSigned,
    /// The disk.
    #[error(transparent)]
    Sys(#[from] SysError),
}

impl LayerError {
    /// A source that cannot be read.
    pub(crate) fn read(path: &std::path::Path) -> impl Fn(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Read { path: path.clone(), source }
    }
}
