//! What can be asked for, as the help and the manual tell it.

pub(crate) mod layer;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};
use varve_agent::config::{PATH, Source};
use varve_format::{DeploymentName, ReleaseName};
use varve_term::Form;

const AFTER: &str = "\
Exit codes:
  0  done, or nothing was to be done     4  refused: policy, no room, another is at work
  1  failed                              5  not trusted: signatures, expiry, damage
  2  wrong use or configuration          6  could not check: no source was reachable
  3  check: nothing newer              130  stopped by Ctrl-C
`try` ends as the command that it runs; 127: it could not be started.

A typical day:
  varve check                is there something newer?
  varve upgrade --dry-run    what would it fetch, and does it fit?
  varve upgrade --reboot     do it; the next boot tries it
  varve status               what runs, what boots next, what happened
  varve rollback --reboot    back to the system before";

/// Upgrades this device's operating system, and takes it back.
///
/// A new release is fetched beside the running system, verified as a whole, and tried at
/// the next boot. When its health checks fail, or it does not come up, the device goes
/// back by itself and remembers why. Power may go at any moment.
#[derive(Debug, Parser)]
#[command(name = "varve", version, after_help = AFTER, max_term_width = 100)]
pub(crate) struct Cli {
    /// Work on the device below this directory (an image that is mounted there) instead
    /// of the running system
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub root: Option<PathBuf>,

    /// Read this configuration [default: /etc/varve/varve.toml; none with --root]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,

    /// Answer with one JSON document
    #[arg(long, global = true)]
    pub json: bool,

    /// Say nothing of progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Say more
    #[arg(short, long, global = true)]
    pub verbose: bool,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// In which form to answer.
    pub(crate) fn form(&self) -> Form {
        if self.json { Form::Json } else { Form::Human }
    }

    /// The configuration to read: none is an empty one.
    pub(crate) fn config(&self) -> PathBuf {
        match (&self.config, &self.root) {
            (Some(file), _) => file.clone(),
            (None, None) => PATH.into(),
            // Never the one of the machine that makes the image.
            (None, Some(root)) => root.join("varve/no-configuration"),
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make the first deployment of an empty file system (how an image is made)
    ///
    /// Needs --root: the directory where the new file system is mounted. The release is
    /// fetched, verified and staged; the repository's root of trust is pinned; the
    /// configuration given by --config is put where the booted system finds it.
    #[command(after_help = "Example:\n  \
        varve --root /mnt --config varve.toml init --source /srv/os \\\n      \
        --trust-root /srv/os/metadata/1.root.json debian-13.1")]
    Init(Init),

    /// Look for a newer release; change nothing
    ///
    /// Exit code 0: there is one; 3: there is none; 5: refused; 6: no source could be
    /// reached, which is not the same as "none".
    Check(SourceArgs),

    /// Fetch, verify and stage the newest release; the next boot tries it
    ///
    /// Ctrl-C at any moment loses nothing that was fetched and verified: the next run
    /// goes on there. The running system is not touched.
    Upgrade(Upgrade),

    /// Run a deployment at once, beside what runs: a shell, a command, its health checks
    ///
    /// Its root is put together as a boot would, in namespaces of its own, with your state
    /// in view; whatever is changed there is in memory and forgotten at the end. The kernel
    /// and the network are the running ones, processes and disks out of sight. It is no
    /// cage for hostile programs. The exit code is the command's.
    #[command(after_help = "Examples:\n  \
        varve try                        a shell in what boots next\n  \
        varve try -- python3 --version   one command\n  \
        varve try debian-13.1 --health   its health checks: 0 all pass, 1 one fails\n  \
        varve try --boot                 all its services, in a container without network")]
    Try(Try),

    /// Take what boots next into use now: in the running system, or by a soft reboot
    ///
    /// --live: the running system shows the new files from one moment to the next; services
    /// that run from files that changed are started anew, all else keeps the old ones until
    /// it ends. Nothing is confirmed: the next boot tries it all the same. Where it is not
    /// safe (another C library, another /etc, a writable root) it says why and changes
    /// nothing.
    ///
    /// --soft-reboot: all programs end and start anew in the new system, on the running
    /// kernel (systemd 254 and later). It counts as a boot: a try is spent, the health
    /// checks judge it.
    #[command(after_help = "Examples:\n  \
        varve layer add vim.deb && varve apply --live\n  \
        varve apply --live --dry-run     what would change, who is started anew\n  \
        varve upgrade && varve apply --soft-reboot")]
    Apply(Apply),

    /// What runs, what boots next, what is here, what happened
    Status(Status),

    /// Boot the previous deployment again, from the next boot on
    ///
    /// One file is changed. The release that is left is remembered with the reason and is
    /// not taken again by itself; `varve upgrade --to NAME` takes it all the same.
    Rollback(Rollback),

    /// Say that the running deployment works: its trial ends
    Confirm(Confirm),

    /// What happened to this device, oldest first
    History(History),

    /// Keep a deployment, whatever is collected
    Pin(Name),

    /// Keep a deployment no longer than the policy says
    Unpin(Name),

    /// Delete what nothing needs: old deployments, merged layers, left-over downloads
    ///
    /// What boots, what is pinned and what any process stands on stays. Works without
    /// free space.
    Collect(Collect),

    /// Compare every deployment with its manifest, to the last byte
    Fsck(Fsck),

    /// Which process runs from which deployment and layer
    Ps(Ps),

    /// Fold the layers of the latest deployment into one, once it has proved itself
    ///
    /// Does something when the stack is as deep as `layers` says and has worked for the
    /// days and boots of `[fold]`; else it says what is missing. A timer asks every day.
    /// With --now the layers of any deployment are folded at once.
    ///
    /// The new layer is made of hard links beside the old ones, compared with the
    /// manifest, and takes their place in the record. What runs is not disturbed.
    Merge(Merge),

    /// Your own layers over the release: add, capture, switch off, look at
    ///
    /// Each change is for the next boot, which tries it, and is taken back by
    /// `varve rollback`. The running system is not touched.
    #[command(subcommand)]
    Layer(layer::Layer),

    /// Back to what the release has: /etc, all state, your layers, or all of it
    ///
    /// For the next boot, which tries it; nothing is deleted, and `varve rollback` brings
    /// everything back. /etc/varve stays. State that all deployments share is left alone.
    Reset(Reset),

    /// Take layers off, one by one, until it works; nothing is deleted
    ///
    /// Without options it shows the list, as the boot menu does: four keys, and a try
    /// restarts the machine. A try is for once and forgets what it changes in the system.
    Strip(Strip),

    /// Find the layer that does harm, by boots that leave some out
    ///
    /// A boot that hangs counts as bad once the machine is switched off and on. The health
    /// checks judge the others, or you do. Without a word it says how far it is.
    Bisect(Bisect),

    /// At shutdown: carry changed state to what boots next, give an unjudged try back
    #[command(hide = true)]
    Finalize,

    /// Write the completions for a shell to standard output
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },

    /// Write the manual pages into a directory
    #[command(hide = true)]
    Manual {
        /// Where
        directory: PathBuf,
    },
}

/// Where to look.
#[derive(Debug, Clone, Args)]
pub(crate) struct SourceArgs {
    /// Look here instead of in the configured sources: a URL or a directory such as a USB
    /// stick's; may be given several times
    #[arg(long, value_name = "URL|DIR")]
    pub source: Vec<Source>,
}

/// See [`Command::Init`].
#[derive(Debug, Args)]
pub(crate) struct Init {
    #[command(flatten)]
    pub sources: SourceArgs,

    /// The repository's root of trust (its metadata/1.root.json), got by a way you trust
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub trust_root: PathBuf,

    /// This release [default: the newest of the channel]
    pub release: Option<ReleaseName>,
}

/// See [`Command::Upgrade`].
#[derive(Debug, Args)]
pub(crate) struct Upgrade {
    #[command(flatten)]
    pub sources: SourceArgs,

    /// Say what would be fetched, the room it needs and whether it fits; change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// Take this release, also one that failed here before
    #[arg(long, value_name = "RELEASE")]
    pub to: Option<ReleaseName>,

    /// With --to: an older release than the present one may be taken
    #[arg(long, requires = "to")]
    pub allow_downgrade: bool,

    /// Stage the present release anew, as the configuration says now (another layout,
    /// another root mode, other state paths)
    #[arg(long)]
    pub restage: bool,

    /// Over a metered network too, whatever the configuration says of it
    #[arg(long)]
    pub metered: bool,

    /// Reboot into it
    #[arg(long, conflicts_with = "dry_run")]
    pub reboot: bool,
}

/// See [`Command::Try`].
#[derive(Debug, Args)]
pub(crate) struct Try {
    /// Which [default: what boots next]
    pub deployment: Option<DeploymentName>,

    /// Run the health checks of its configuration, and say which fail
    #[arg(long, conflicts_with_all = ["boot", "command"])]
    pub health: bool,

    /// Boot it as a container, by systemd-nspawn
    #[arg(long, conflicts_with = "command")]
    pub boot: bool,

    /// The command; no shell is involved [default: a shell]
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// See [`Command::Apply`].
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("way").required(true))]
pub(crate) struct Apply {
    /// With --live: which [default: what boots next]
    #[arg(conflicts_with = "soft_reboot")]
    pub deployment: Option<DeploymentName>,

    /// In the running system
    #[arg(long, group = "way")]
    pub live: bool,

    /// By a reboot of all but the kernel
    #[arg(long, group = "way")]
    pub soft_reboot: bool,

    /// With --live: start no service anew
    #[arg(long, conflicts_with = "soft_reboot")]
    pub no_restart: bool,

    /// Say what would be done, and what speaks against it; change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// See [`Command::Rollback`].
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// Say what would boot; change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// Why, for the history
    #[arg(long, value_name = "TEXT", default_value = "rolled back by the user")]
    pub reason: String,

    /// Reboot into it
    #[arg(long, conflicts_with = "dry_run")]
    pub reboot: bool,
}

/// See [`Command::Confirm`].
#[derive(Debug, Args)]
pub(crate) struct Confirm {
    /// Run the health checks first; roll back and reboot if one fails (what the systemd
    /// unit does once after each boot)
    #[arg(long)]
    pub after_boot: bool,

    /// Say what would be confirmed, and which checks would run; change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// See [`Command::Status`].
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Also what each deployment takes, and what of it alone; with -v, each layer and tree.
    /// Looks at every file of them
    #[arg(long)]
    pub space: bool,
}

/// See [`Command::History`].
#[derive(Debug, Args)]
pub(crate) struct History {
    /// The last so many entries alone
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub last: Option<usize>,
}

/// One deployment.
#[derive(Debug, Args)]
pub(crate) struct Name {
    /// Which: see `varve status`
    pub deployment: DeploymentName,

    /// Say what would change; change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// See [`Command::Collect`].
#[derive(Debug, Args)]
pub(crate) struct Collect {
    /// Say what would go and what that frees; delete nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// Delete what an unfinished upgrade has fetched, too
    #[arg(long)]
    pub unfinished: bool,

    /// Delete the system before, too, and all others but pinned ones: there is no way back
    /// then. Only once the latest runs and has proved itself
    #[arg(long)]
    pub previous: bool,
}

/// See [`Command::Reset`].
#[derive(Debug, Args)]
pub(crate) struct Reset {
    /// How much
    pub level: ResetLevel,

    /// Say what would be; change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// Reboot into it
    #[arg(long, conflicts_with = "dry_run")]
    pub reboot: bool,
}

/// How much is reset.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum ResetLevel {
    /// Your changes of /etc
    Etc,
    /// Your changes of every versioned state path and of the root
    State,
    /// Your own layers are switched off
    Layers,
    /// State and layers
    All,
}

/// See [`Command::Fsck`].
#[derive(Debug, Args)]
pub(crate) struct Fsck {
    /// This one alone
    pub deployment: Option<DeploymentName>,

    /// Mend what is damaged: from another deployment here, else from the sources
    #[arg(long)]
    pub repair: bool,

    #[command(flatten)]
    pub sources: SourceArgs,
}

/// See [`Command::Ps`].
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Every file, not their numbers alone
    #[arg(short, long)]
    pub files: bool,

    /// Those that stand on this deployment alone
    #[arg(long, value_name = "NAME")]
    pub deployment: Option<DeploymentName>,
}

/// See [`Command::Merge`].
#[derive(Debug, Args)]
pub(crate) struct Merge {
    /// Do not wait until it has worked for as long as `[fold]` says
    #[arg(long)]
    pub now: bool,

    /// Which [default: the latest]
    #[arg(requires = "now")]
    pub deployment: Option<DeploymentName>,

    /// Say what would be merged; change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// See [`Command::Strip`].
#[derive(Debug, Args)]
pub(crate) struct Strip {
    /// The next boot leaves out so many, from the top
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["base", "keep", "back"])]
    pub off: Option<usize>,

    /// The next boot is the base alone
    #[arg(long, conflicts_with_all = ["keep", "back"])]
    pub base: bool,

    /// Keep what runs: what was left out of this boot is off from now on
    #[arg(long, conflicts_with = "back")]
    pub keep: bool,

    /// Put it all back: the next boot has every layer
    #[arg(long)]
    pub back: bool,

    /// Say what would be; change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// Reboot
    #[arg(long, conflicts_with = "dry_run")]
    pub reboot: bool,
}

/// See [`Command::Bisect`].
#[derive(Debug, Args)]
pub(crate) struct Bisect {
    /// What to do
    #[command(subcommand)]
    pub act: Option<BisectAct>,

    /// Say what would be; change nothing
    #[arg(short = 'n', long, global = true)]
    pub dry_run: bool,
}

/// The acts of a search.
#[derive(Debug, Subcommand)]
pub(crate) enum BisectAct {
    /// Begin; the next boot takes the first probe
    Start {
        /// You judge each boot, not the health checks: good, bad or skip
        #[arg(long)]
        person: bool,

        /// Find the smallest set of layers that does harm together (takes many more boots)
        #[arg(long)]
        subset: bool,

        /// Believe a verdict once it leads by so many answers, for what fails now and then
        #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=9))]
        agree: u8,

        /// First by the health checks in private copies, without a boot; what shows in none
        /// of them is searched for by boots
        #[arg(long = "try", conflicts_with = "person")]
        try_first: bool,

        /// Reboot into the first probe
        #[arg(long)]
        reboot: bool,
    },
    /// This boot works
    Good {
        /// Reboot into the next probe
        #[arg(long)]
        reboot: bool,
    },
    /// This boot does not work
    Bad {
        /// Reboot into the next probe
        #[arg(long)]
        reboot: bool,
    },
    /// This boot says nothing
    Skip {
        /// Reboot into the next probe
        #[arg(long)]
        reboot: bool,
    },
    /// Switch off what was found, from now on
    Keep,
    /// End the search; the next boot is the usual one
    Stop,
}
