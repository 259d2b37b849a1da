//! The command line: what a publisher can type.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use varve_format::ReleaseName;
use varve_publish::Role;

/// Publishes operating system releases for Varve.
///
/// A repository is a directory of static files: build releases into it, publish them
/// (which signs the list of releases), and put the directory on any HTTP server or USB
/// stick.
#[derive(Debug, Parser)]
#[command(name = "varve-repo", version, max_term_width = 100, args_override_self = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The repository's directory.
    #[arg(short, long, global = true, default_value = ".", value_name = "DIR")]
    pub(crate) repo: PathBuf,
    /// The directory of the signing keys, one directory for each role [default: REPO.keys].
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) keys: Option<PathBuf>,
    /// The directory of the root's keys, which are needed by init and rotate alone [default:
    /// root/ in the directory of the keys].
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) root_keys: Option<PathBuf>,
    /// Answer with one JSON document on standard output.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Show no progress.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a repository and its keys.
    Init(Init),
    /// Build a release from a directory, a tar archive or an OCI image layout.
    Build(Build),
    /// Sign a release that was built, and with it the list of releases.
    Publish(Publish),
    /// Make deltas from releases to a published one, and offer them.
    Delta {
        /// The release that devices have.
        from: ReleaseName,
        /// The release that they are to get.
        to: ReleaseName,
    },
    /// List the releases.
    List,
    /// Show a release.
    Show {
        /// The release's name.
        name: ReleaseName,
    },
    /// Compare two releases: by package where dpkg's database is in both, by path otherwise.
    Diff {
        /// The older release.
        from: ReleaseName,
        /// The newer one.
        to: ReleaseName,
        /// Show every path: also the later ones, and those that change in mode, owner, times
        /// or links alone.
        #[arg(long)]
        all: bool,
    },
    /// Take releases out, and delete what then nothing needs.
    Prune(Prune),
    /// Verify everything: signatures, records, manifests, packs, contents.
    Check,
    /// Give a role new keys; devices follow by themselves.
    Rotate(Rotate),
    /// Sign anew before signatures expire: from a timer, every day.
    Refresh {
        /// Sign these roles even if it is not time [default: what is due].
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<Role>,
        /// Only say what would be signed.
        #[arg(long)]
        dry_run: bool,
    },
    /// Write a shell's completions to standard output.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// How many keys a role gets, such as targets=3 [default: 1 each].
    #[arg(long = "key-count", value_name = "ROLE=N", value_parser = role_number)]
    pub(crate) key_counts: Vec<(Role, u32)>,
    /// How many of a role's keys must sign, such as targets=2 [default: 1 each].
    #[arg(long = "threshold", value_name = "ROLE=N", value_parser = role_number)]
    pub(crate) thresholds: Vec<(Role, u32)>,
    /// How long a role's signatures last [default: root=1095, targets=365, snapshot=90,
    /// timestamp=30].
    #[arg(long = "expires", value_name = "ROLE=DAYS", value_parser = role_number)]
    pub(crate) expires: Vec<(Role, u32)>,
    /// Only say what would be made.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Build {
    /// A directory, a tar archive (also compressed), an OCI image layout, or - for a tar
    /// archive on standard input.
    pub(crate) source: PathBuf,
    /// The release's name, such as debian-13.2.
    #[arg(short, long)]
    pub(crate) name: ReleaseName,
    /// Debian's name of the architecture [default: what the tree's dpkg says].
    #[arg(long)]
    pub(crate) architecture: Option<String>,
    /// One paragraph for people.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) notes: String,
    /// Level of compression, 1 to 22.
    #[arg(long, default_value_t = varve_build::DEFAULT_LEVEL, value_parser = clap::value_parser!(i32).range(1..=22))]
    pub(crate) level: i32,
    /// Threads that compress [default: one for each processor].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub(crate) threads: usize,
    /// Of an OCI image layout with several images: which, by its reference name.
    #[arg(long, value_name = "NAME")]
    pub(crate) reference: Option<String>,
    /// Publish it when it is built.
    #[arg(long)]
    pub(crate) publish: bool,
    /// The channel to publish it in.
    #[arg(long, default_value = "stable", requires = "publish", value_parser = channel)]
    pub(crate) channel: String,
    #[command(flatten)]
    pub(crate) deltas: Deltas,
}

/// From which releases deltas lead to the one that is published.
#[derive(Debug, Args)]
pub(crate) struct Deltas {
    /// Offer deltas from the newest so many releases of the channel.
    #[arg(long, value_name = "N", default_value_t = varve_publish::DEFAULT_DELTAS)]
    pub(crate) deltas: usize,
    /// Offer a delta from this release; may be given several times [default: the newest ones].
    #[arg(long, value_name = "NAME")]
    pub(crate) delta_from: Vec<ReleaseName>,
    /// Offer no deltas.
    #[arg(long, conflicts_with_all = ["deltas", "delta_from"])]
    pub(crate) no_deltas: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// The release's name.
    pub(crate) name: ReleaseName,
    /// The channel: a device follows one.
    #[arg(long, default_value = "stable", value_parser = channel)]
    pub(crate) channel: String,
    /// Its place in the order of releases; devices take the highest of their channel
    /// [default: one above all].
    #[arg(long)]
    pub(crate) sequence: Option<u64>,
    #[command(flatten)]
    pub(crate) deltas: Deltas,
    /// Check everything, write nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["keep", "releases"]))]
pub(crate) struct Prune {
    /// Keep the newest so many releases of each channel.
    #[arg(long, value_name = "N")]
    pub(crate) keep: Option<usize>,
    /// Take out this release; may be given several times.
    #[arg(long = "release", value_name = "NAME")]
    pub(crate) releases: Vec<ReleaseName>,
    /// Only say what would be taken out and deleted.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rotate {
    /// The role: root, targets, snapshot or timestamp.
    pub(crate) role: Role,
    /// How many keys it gets [default: as many as before].
    #[arg(long, value_name = "N")]
    pub(crate) key_count: Option<u32>,
    /// How many of them must sign [default: as before].
    #[arg(long, value_name = "N")]
    pub(crate) threshold: Option<u32>,
    /// The role's old keys are gone or stolen: do not sign with them.
    #[arg(long)]
    pub(crate) lost: bool,
    /// Only check that it can be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

fn role_number(text: &str) -> Result<(Role, u32), String> {
    let (role, number) =
        text.split_once('=').ok_or("a role, an equals sign and a number are expected")?;
    let number = number.parse().ok().filter(|number| *number > 0);
    Ok((role.parse()?, number.ok_or("a number above zero is expected behind the equals sign")?))
}

fn channel(text: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if (1..=40).contains(&text.len()) && text.bytes().all(good) {
        Ok(text.to_owned())
    } else {
        Err("1 to 40 characters of A-Z a-z 0-9 . _ - are expected".into())
    }
}
