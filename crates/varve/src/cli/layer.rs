//! `varve layer …`, as the help tells it.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use varve_format::LayerName;
use varve_format::layer_file::LayerKey;

/// What to do about the user's own layers.
#[derive(Debug, Subcommand)]
pub(crate) enum Layer {
    /// Which layers there are: those of the system that boots next, newest first
    List,

    /// What a layer is, and what it takes
    Show(Which),

    /// What a layer changes, path by path
    Diff(Which),

    /// Freeze what was changed at the root of the running system as a layer
    ///
    /// Needs root-mode "persistent" or "volatile". From the next boot on the changes come
    /// from the layer and the writable top is empty. What lies in state paths (/etc,
    /// /home) is not part of it: it follows the system by itself.
    Capture(Capture),

    /// Make a layer of directories, tars and Debian packages
    ///
    /// A directory of the system keeps its owner and rights. A package's scripts are not
    /// run; which it has is said. dpkg knows the package from the next boot on.
    Add(Add),

    /// Run a command in a private copy of the system, and keep what it changed as a layer
    ///
    /// The copy is what boots next, with a writable top, the network, and /etc and /var as
    /// the release has them. Caches and logs are not kept. A command that fails leaves
    /// nothing.
    #[command(after_help = "Example:\n  \
        varve layer run editor -- sh -c 'apt-get update && apt-get install -y vim'")]
    Run(Run),

    /// Write a layer into one file, signed with this device's key
    ///
    /// To be given to somebody else, who takes it with `varve layer import`. It holds all
    /// that the layer holds: look with `varve layer diff` before you give it away. The key
    /// is made the first time; tell it to whoever is to take your layers.
    Export(Export),

    /// Take a layer that somebody gave you
    ///
    /// The file must be signed with a key that is listed as `layer-keys` in the
    /// configuration, named with --trust, or this device's own. What it may hold is what
    /// `[policy]` allows.
    #[command(after_help = "Example:\n  \
        varve layer import games.varve --trust ed25519:3d40…")]
    Import(Import),

    /// Mount a layer from the next boot on
    On(Switch),

    /// Leave a layer out from the next boot on; it keeps its place
    Off(Switch),

    /// Put a layer elsewhere in the stack
    Move(Move),

    /// Take a layer out of the stack; it is deleted once no deployment needs it
    Remove(Switch),

    /// Give a layer another title, for lists and menus
    Rename(Rename),
}

/// One layer.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Its name or title: see `varve layer list`
    pub layer: String,
}

/// What every change of the layers can be asked.
#[derive(Debug, Args)]
pub(crate) struct Change {
    /// Say what would be; a layer that is made is checked and thrown away
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// Reboot into it
    #[arg(long, conflicts_with = "dry_run")]
    pub reboot: bool,
}

/// A layer that is made.
#[derive(Debug, Args)]
pub(crate) struct New {
    /// For people: what is in it
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub title: String,

    #[command(flatten)]
    pub change: Change,
}

/// One layer, for the next boot.
#[derive(Debug, Args)]
pub(crate) struct Switch {
    /// Its name or title: see `varve layer list`
    pub layer: String,

    #[command(flatten)]
    pub change: Change,
}

/// See [`Layer::Capture`].
#[derive(Debug, Args)]
pub(crate) struct Capture {
    /// The layer's name
    pub name: LayerName,

    #[command(flatten)]
    pub new: New,
}

/// See [`Layer::Add`].
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Directories, tars (plain, gzip, xz, zstd) and .deb files; a later one wins
    #[arg(required = true, value_name = "DIR|TAR|DEB", value_hint = ValueHint::AnyPath)]
    pub sources: Vec<PathBuf>,

    /// The layer's name [default: made of the first source's]
    #[arg(long)]
    pub name: Option<LayerName>,

    #[command(flatten)]
    pub new: New,
}

/// See [`Layer::Run`].
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The layer's name
    pub name: LayerName,

    #[command(flatten)]
    pub new: New,

    /// The command; no shell is involved
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// See [`Layer::Export`].
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Its name or title: see `varve layer list`
    pub layer: String,

    /// The file; there must be none of that name
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// See [`Layer::Import`].
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// What `varve layer export` made
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,

    /// Believe this key for this time, got from its owner by a way you trust
    #[arg(long, value_name = "KEY")]
    pub trust: Vec<LayerKey>,

    /// The layer's name here [default: as its maker calls it]
    #[arg(long)]
    pub name: Option<LayerName>,

    #[command(flatten)]
    pub new: New,
}

/// See [`Layer::Move`].
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("place").required(true))]
pub(crate) struct Move {
    /// Its name or title
    pub layer: String,

    /// Over all others
    #[arg(long, group = "place")]
    pub top: bool,

    /// Under all your other layers
    #[arg(long, group = "place")]
    pub bottom: bool,

    /// Directly over this one
    #[arg(long, value_name = "LAYER", group = "place")]
    pub above: Option<String>,

    /// Directly under this one
    #[arg(long, value_name = "LAYER", group = "place")]
    pub below: Option<String>,

    #[command(flatten)]
    pub change: Change,
}

/// See [`Layer::Rename`].
#[derive(Debug, Args)]
pub(crate) struct Rename {
    /// Its name or title
    pub layer: String,

    /// The new title
    pub title: String,

    /// Say what would be; change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}
