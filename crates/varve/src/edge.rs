//! The edge: each error's exit code, and what its user can do about it.

use varve_agent::choose::ChoiceError;
use varve_agent::inside::InsideError;
use varve_agent::layer::LayerError;
use varve_agent::plan::Refusal;
use varve_agent::policy::PolicyError;
use varve_agent::sources::SourcesError;
use varve_agent::tryout::TryError;
use varve_agent::{DeviceError, Error};
use varve_boot::transition::TransitionError;
use varve_fetch::contents::ContentsError;
use varve_fetch::layer_file::OpenError;
use varve_fetch::metadata::DocumentError;
use varve_fetch::{FetchError, Refusal as TrustRefusal, TrustError};
use varve_rootfs::StoreError;
use varve_rootfs::stage::StageError;
use varve_rootfs::verify::Report;
use varve_term::{Exit, Form, human, out};

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The update manager's answer.
    Agent(Error),
    /// Wrong use that the command line's grammar does not show.
    Usage(String),
    /// Something outside: a file given on the command line, another program.
    Other {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Agent(error.into())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agent(error) => error.fmt(f),
            Self::Usage(text) => f.write_str(text),
            Self::Other { what, .. } => write!(f, "cannot {what}"),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Agent(error) => error.source(),
            Self::Usage(_) => None,
            Self::Other { source, .. } => Some(source),
        }
    }
}

impl Failure {
    /// Something outside that failed.
    pub(crate) fn other(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Other { what: what.into(), source }
    }

    /// Tells it, and gives the exit code.
    pub(crate) fn tell(&self, form: Form) -> Exit {
        let (exit, hint) = self.answer();
        if form == Form::Json {
            let _ = out::print_json(&out::error_json(self, hint.as_deref(), exit));
        }
        out::note(&out::error_text(self, hint.as_deref()));
        exit
    }

    /// The exit code, and what to do.
    fn answer(&self) -> (Exit, Option<String>) {
        match self {
            Self::Agent(error) => answer(error),
            Self::Usage(_) => (Exit::Usage, Some("see `varve help`".to_owned())),
            Self::Other { .. } => (Exit::Failed, None),
        }
    }
}

fn answer(error: &Error) -> (Exit, Option<String>) {
    if error.is_cancelled() {
        let hint = "the same command goes on where it stopped";
        return (Exit::Interrupted, Some(hint.to_owned()));
    }
    if error.is_no_space() {
        let hint = "the running system is untouched, and what was verified is kept\n\
                    `varve collect` frees what nothing needs; then run the command again";
        return (Exit::Refused, Some(hint.to_owned()));
    }
    if error.is_read_only() {
        let hint = "the disk is read-only: after an error of the disk the kernel makes it so; \
                    see `dmesg`\nnothing was changed, and the system that runs goes on";
        return (Exit::Refused, Some(hint.to_owned()));
    }
    if error.is_permission_denied() {
        let hint = "what a device holds is its administrator's alone: run it as root";
        return (Exit::Refused, Some(hint.to_owned()));
    }
    let (exit, hint) = match error {
        Error::Device(error) => device(error),
        Error::Sources(SourcesError::None) => (
            Exit::Usage,
            "write `sources = [\"https://…\"]` into /etc/varve/varve.toml, or give --source".into(),
        ),
        Error::Sources(SourcesError::Bad { .. }) => {
            (Exit::Usage, "mend `sources` or `[network]` in the configuration".into())
        }
        Error::Sources(SourcesError::Certificates { .. }) => {
            (Exit::Usage, "mend `certificates` below `[network]` in the configuration".into())
        }
        Error::Trust(error) => trust(error),
        Error::Choice(error) => choice(error),
        Error::Document(DocumentError::NoSuchRelease { .. }) => {
            (Exit::Refused, "`varve check` shows what there is".into())
        }
        Error::Document(DocumentError::Fetch(error))
        | Error::Contents(ContentsError::Fetch(error)) => fetch(error),
        Error::Document(_)
        | Error::Contents(
            ContentsError::NotInPacks { .. }
            | ContentsError::OtherSize { .. }
            | ContentsError::BadFrame { .. }
            | ContentsError::WrongContent { .. },
        ) => (
            Exit::Untrusted,
            "the release was published wrong: tell its publisher; nothing here was changed".into(),
        ),
        Error::Policy(PolicyError::Devices { .. }) => (
            Exit::Refused,
            "if its publisher means it, name them in `[policy] devices` of the configuration".into(),
        ),
        Error::Policy(PolicyError::Setuid { .. }) => (
            Exit::Refused,
            "if its publisher means it, name them in `[policy] setuid` of the configuration".into(),
        ),
        Error::Policy(PolicyError::Xattr { .. }) => (
            Exit::Refused,
            "if its publisher means it, name it in `[policy] xattrs` of the configuration".into(),
        ),
        Error::Policy(_) => (Exit::Refused, "tell the release's publisher".into()),
        Error::NoStateDirectory { .. } => (
            Exit::Refused,
            "take these out of [[state]] in the configuration, or have the publisher add them".into(),
        ),
        Error::Refused(refusal) => (Exit::Refused, refused(refusal)),
        Error::Stage(StageError::Differs { report }) => (Exit::Untrusted, differs(report)),
        Error::Merge(varve_rootfs::merge::MergeError::Differs { report }) => {
            (Exit::Untrusted, differs(report))
        }
        Error::Stage(StageError::SourceGone { .. }) => {
            (Exit::Untrusted, "run `varve fsck` to see what else is damaged".into())
        }
        Error::Transition(TransitionError::NoPrevious { .. }) => {
            (Exit::Refused, "`varve status` shows which deployments are here".into())
        }
        Error::Transition(TransitionError::NotLatest { .. }) => (
            Exit::Refused,
            "only the latest can be confirmed: reboot into it, or `varve rollback` to keep what runs"
                .into(),
        ),
        Error::NoDeployment { .. } | Error::Store(StoreError::NoDeployment { .. }) => {
            (Exit::Refused, "`varve status` shows which there are".into())
        }
        Error::Strip(_) => (
            Exit::Refused,
            "`varve strip` shows the layers, `varve bisect` how far a search is".into(),
        ),
        Error::NotEmpty { .. } => (Exit::Refused, "`varve --root DIR upgrade` upgrades it".into()),
        Error::WayBack { .. } => {
            (Exit::Refused, "once it is confirmed: `varve status`; without --previous all else goes".into())
        }
        Error::NotRunning => (Exit::Refused, "without --root it works on what runs".into()),
        Error::NothingGood => {
            (Exit::Failed, "boot a deployment and run `varve confirm` in it".into())
        }
        Error::Store(StoreError::NoStore { .. }) => no_store(),
        Error::Layer(error) => return layer(error),
        Error::Live(error) => {
            let hint = match error.instead() {
                Some(way) => format!("nothing was changed; {} does it", crate::show::apply::instead(way)),
                None => "nothing was changed".to_owned(),
            };
            (Exit::Refused, hint)
        }
        Error::Inside(InsideError::Mount(error)) => match error.io().map(|error| error.kind()) {
            Some(std::io::ErrorKind::PermissionDenied) => {
                (Exit::Refused, "only root may mount: run it as root".into())
            }
            _ => return (Exit::Failed, Some("nothing was changed".to_owned())),
        },
        Error::Inside(InsideError::Start { .. }) => {
            (Exit::Of(127), "nothing was changed; the path is one inside that system".into())
        }
        Error::Try(TryError::NoContainer) => {
            (Exit::Refused, "install it: `apt install systemd-container`".into())
        }
        Error::Try(TryError::NoChecks { .. }) => (
            Exit::Refused,
            "write some as [[health]] into /etc/varve/varve.toml: `man varve`".into(),
        ),
        Error::Try(_) => (Exit::Refused, "nothing was changed".into()),
        _ => return (Exit::Failed, None),
    };
    (exit, Some(hint))
}

fn layer(error: &LayerError) -> (Exit, Option<String>) {
    let hint = match error {
        LayerError::NoLayer { .. }
        | LayerError::Ambiguous { .. }
        | LayerError::NotOwn { .. }
        | LayerError::NotInStack { .. } => "`varve layer list` shows which there are",
        LayerError::Taken { .. } => "take another name; `varve layer list` shows what is there",
        LayerError::NothingToCapture { .. } => {
            "what lies in state paths such as /etc follows the system by itself"
        }
        LayerError::Device { .. } => "if you mean it, allow it in [policy] of the configuration",
        LayerError::Room { .. } | LayerError::Inodes { .. } => {
            "`varve collect` frees what nothing needs"
        }
        LayerError::Command { .. } | LayerError::NoChange { .. } => "nothing was changed",
        LayerError::Title { .. } => return (Exit::Usage, None),
        LayerError::File(OpenError::Unknown { key, .. }) => {
            let hint = format!(
                "ask whoever made it for the key, by a way you trust; if it is this one:\n\
                 --trust {key}, or list it as `layer-keys` in the configuration"
            );
            return (Exit::Untrusted, Some(hint));
        }
        LayerError::File(OpenError::Read { .. }) => return (Exit::Failed, None),
        LayerError::File(_) => {
            let hint = "get the file again; nothing was changed";
            return (Exit::Untrusted, Some(hint.to_owned()));
        }
        LayerError::Exists { .. } => "take another name, or remove it first",
        LayerError::NothingChanges | LayerError::Source { .. } | LayerError::Compose { .. } => {
            "nothing was changed"
        }
        _ => return (Exit::Failed, None),
    };
    (Exit::Refused, Some(hint.to_owned()))
}

fn no_store() -> (Exit, String) {
    (Exit::Refused, "`varve --root DIR init` makes one".to_owned())
}

fn device(error: &DeviceError) -> (Exit, String) {
    match error {
        DeviceError::NotBooted { .. } => (
            Exit::Refused,
            "give --root DIR to work on an image; `varve --root DIR init` makes one".to_owned(),
        ),
        DeviceError::Store(StoreError::NoStore { .. }) => no_store(),
        DeviceError::Config(_) => (Exit::Usage, "nothing was begun".to_owned()),
        DeviceError::Busy { .. } => {
            (Exit::Refused, "wait until it is done; nothing was changed".to_owned())
        }
        _ => (Exit::Failed, "nothing was changed".to_owned()),
    }
}

fn trust(error: &TrustError) -> (Exit, String) {
    let text = match error {
        TrustError::CouldNotCheck { tried } if tried.iter().any(|a| a.error.is_captive()) => {
            return (Exit::CouldNotCheck, LOGIN.to_owned());
        }
        TrustError::CouldNotCheck { .. } => {
            return (
                Exit::CouldNotCheck,
                "whether there is something newer is not known; try again when the link is better"
                    .to_owned(),
            );
        }
        TrustError::Refused { reason: TrustRefusal::Expired { .. }, .. } => {
            "the publisher has not renewed its signatures, or this device's clock is ahead: compare `date`"
        }
        TrustError::Refused { reason: TrustRefusal::OlderThanSeen { .. }, .. } => {
            "this source is behind, or somebody offers an old state on purpose; another source may be newer"
        }
        TrustError::Refused { .. } => {
            "nothing of it was used; another source may have it right, else tell the publisher"
        }
        TrustError::NotARoot { .. } => "give the repository's metadata/1.root.json",
        TrustError::State { .. } | TrustError::Save { .. } => {
            "the device still boots; pin the root of trust again to upgrade"
        }
        _ => "nothing was changed",
    };
    (Exit::Untrusted, text.to_owned())
}

fn choice(error: &ChoiceError) -> (Exit, String) {
    let hint = match error {
        ChoiceError::NoSuchRelease { known, .. } => {
            let known: Vec<_> = known.iter().take(8).map(ToString::to_string).collect();
            format!("it has {}", known.join(", "))
        }
        ChoiceError::EmptyChannel { known, .. } if known.is_empty() => {
            "nothing is published there yet".to_owned()
        }
        ChoiceError::EmptyChannel { known, .. } => {
            format!("it has the channels {}: set `channel` in the configuration", known.join(", "))
        }
        ChoiceError::Downgrade { .. } => {
            "if you mean it, add --allow-downgrade; to go back to what was here before: varve rollback"
                .to_owned()
        }
    };
    (Exit::Refused, hint)
}

const LOGIN: &str = "log in to the network, then run the same command: it goes on where it stopped";

fn fetch(error: &FetchError) -> (Exit, String) {
    if error.is_budget() {
        let hint =
            "what was verified is kept; raise `max-download`, or use a USB stick: --source DIR";
        return (Exit::Refused, hint.to_owned());
    }
    if error.is_damage() {
        let hint = "a source gave other bytes than the signed metadata names; none were used\n\
                    what was verified is kept; another source may have it right";
        return (Exit::Untrusted, hint.to_owned());
    }
    if error.is_captive() {
        return (Exit::CouldNotCheck, LOGIN.to_owned());
    }
    let hint = "what was verified is kept: the same command goes on where it stopped";
    (Exit::CouldNotCheck, hint.to_owned())
}

fn refused(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Bytes { need, free, reserve, .. } => {
            let missing = (need + reserve).saturating_sub(*free);
            format!(
                "{} are missing; `varve collect` frees what nothing needs; nothing was changed",
                human::bytes(missing)
            )
        }
        Refusal::Inodes { need, free, .. } => format!(
            "{} are missing; `varve collect` frees what nothing needs; nothing was changed",
            human::plural(need - free, "inode", "inodes")
        ),
        Refusal::Metered { .. } => {
            "with --metered it is fetched all the same; or use a USB stick: --source DIR".to_owned()
        }
        Refusal::Budget { bytes, limit } => format!(
            "{} against {}; raise `max-download`, or use a USB stick: --source DIR",
            human::bytes(*bytes),
            human::bytes(*limit)
        ),
    }
}

fn differs(report: &Report) -> String {
    let mut text = String::from(
        "it was deleted, and the reason is in `varve history`; the running system is untouched",
    );
    for difference in report.differences.iter().take(5) {
        text.push_str(&format!("\n{difference}"));
    }
    text
}
