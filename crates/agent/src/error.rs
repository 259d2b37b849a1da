//! Why the update manager did not do what it was asked. One type over its modules' own;
//! what a user can do about each is said by the command line.

use varve_fetch::contents::ContentsError;
use varve_fetch::metadata::DocumentError;
use varve_fetch::{FetchError, TrustError};
use varve_format::DeploymentName;
use varve_format::deployment::StateDir;
use varve_rootfs::StoreError;
use varve_rootfs::layout::PlanError;
use varve_rootfs::merge::MergeError;
use varve_rootfs::stage::StageError;
use varve_rootfs::state::StateError;
use varve_rootfs::verify::VerifyError;
use varve_sys::SysError;
use varve_sys::task::Cancelled;

use crate::choose::ChoiceError;
use crate::device::DeviceError;
use crate::layer::LayerError;
use crate::plan::Refusal;
use crate::policy::PolicyError;
use crate::sources::SourcesError;

/// What this crate's functions give.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device cannot be opened, or is being changed by another program.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No source to ask.
    #[error(transparent)]
    Sources(#[from] SourcesError),
    /// The repository's metadata was refused, or could not be asked for.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// No release to take.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    /// A document of the release cannot be used.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The release is not taken by this device.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The release has no directory where state is to be kept.
    #[error("the release has no directory {} to keep state in", list(paths))]
    NoStateDirectory {
        /// The configured paths that are missing.
        paths: Vec<StateDir>,
    },
    /// The upgrade cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The plan must not be carried out.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The contents could not be fetched.
    #[error(transparent)]
    Contents(#[from] ContentsError),
    /// The release could not be staged.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// State could not be carried to the new deployment.
    #[error("the state of {from} could not be carried to {to}")]
    Carry {
        /// Whose.
        from: DeploymentName,
        /// To whom.
        to: DeploymentName,
        /// Why.
        source: StateError,
    },
    /// Something about the user's own layers.
    #[error(transparent)]
    Layer(#[from] crate::layer::LayerError),
    /// A command could not be run in a private copy of a system.
    #[error(transparent)]
    Inside(#[from] crate::inside::InsideError),
    /// The new root could not be put together.
    #[error(transparent)]
    Boot(#[from] varve_early::StageError),
    /// The running system was not changed.
    #[error(transparent)]
    Live(#[from] crate::live::LiveError),
    /// A deployment could not be tried.
    #[error(transparent)]
    Try(#[from] crate::tryout::TryError),
    /// Layers could not be merged.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// It could not be found out whether what is here is right.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The system before is not given up.
    #[error("the way back to the system before may be needed: {why}")]
    WayBack {
        /// Why.
        why: String,
    },
    /// The selection does not allow it.
    #[error(transparent)]
    Transition(#[from] varve_boot::transition::TransitionError),
    /// Layers were not taken off, or a search does not allow it.
    #[error(transparent)]
    Strip(#[from] crate::strip::StripError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// There is no such deployment.
    #[error("there is no deployment {name}")]
    NoDeployment {
        /// What was asked for.
        name: DeploymentName,
    },
    /// No deployment here is known to be good, and no selection says which to boot.
    #[error("there is no deployment that is known to be good")]
    NothingGood,
    /// This works on the system that is running alone.
    #[error("this device is not the one that is running")]
    NotRunning,
    /// The physical root has a device already.
    #[error("{path} holds a device already: it has the deployment {name}")]
    NotEmpty {
        /// The physical root.
        path: String,
        /// What is there.
        name: DeploymentName,
    },
    /// `/proc` cannot be read.
    #[error("cannot see which processes run")]
    Proc(#[source] std::io::Error),
    /// Asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

fn list(paths: &[StateDir]) -> String {
    paths.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Error {
    /// Whether it is an answer to being asked to stop.
    pub fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Self::Cancelled(_)
                | Self::Trust(TrustError::Cancelled)
                | Self::Contents(ContentsError::Cancelled)
                | Self::Document(DocumentError::Fetch(FetchError::Cancelled))
                | Self::Stage(StageError::Cancelled(_))
                | Self::Merge(MergeError::Cancelled(_))
                | Self::Verify(VerifyError::Cancelled(_))
                | Self::Plan(PlanError::Check(VerifyError::Cancelled(_)))
        )
    }

    /// Whether the link failed, not the device or the release: not worth a line of the
    /// history each time.
    pub fn is_link(&self) -> bool {
        match self {
            Self::Trust(TrustError::CouldNotCheck { .. }) => true,
            _ => self.fetching().is_some_and(|error| !error.is_damage()),
        }
    }

    /// Whether no source has a file that the metadata names: the repository changed in
    /// between.
    pub fn is_missing_file(&self) -> bool {
        self.fetching().is_some_and(FetchError::is_missing)
    }

    /// Whether the link became metered while something came.
    pub fn is_metered(&self) -> bool {
        matches!(self, Self::Refused(Refusal::Metered { .. }))
            || self.fetching().is_some_and(FetchError::is_metered)
    }

    /// Whether more would have been fetched than may be.
    pub fn is_budget(&self) -> bool {
        matches!(self, Self::Refused(Refusal::Budget { .. }))
            || self.fetching().is_some_and(FetchError::is_budget)
    }

    /// What came of fetching, where that is what failed.
    fn fetching(&self) -> Option<&FetchError> {
        match self {
            Self::Document(DocumentError::Fetch(error))
            | Self::Contents(ContentsError::Fetch(error)) => Some(error),
            _ => None,
        }
    }

    /// Whether the disk, or its inodes, are full.
    pub fn is_no_space(&self) -> bool {
        self.find_sys(SysError::is_no_space)
    }

    /// Whether the disk may not be written.
    pub fn is_read_only(&self) -> bool {
        self.find_sys(SysError::is_read_only)
    }

    /// Whether the caller may not do that.
    pub fn is_permission_denied(&self) -> bool {
        self.find_sys(|error| error.source.kind() == std::io::ErrorKind::PermissionDenied)
    }

    fn find_sys(&self, test: fn(&SysError) -> bool) -> bool {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            // `#[error(transparent)]` hands on the source of what it wraps: look inside.
            if error.downcast_ref::<SysError>().is_some_and(test)
                || self.wrapped().is_some_and(test)
            {
                return true;
            }
            next = error.source();
        }
        false
    }

    /// The system call's error that a transparent variant hides from `source()`.
    fn wrapped(&self) -> Option<&SysError> {
        fn of_store(error: &StoreError) -> Option<&SysError> {
            if let StoreError::Sys(error) = error { Some(error) } else { None }
        }
        match self {
            Self::Sys(error)
            | Self::Device(DeviceError::Sys(error))
            | Self::Contents(ContentsError::Store(error))
            | Self::Layer(LayerError::Sys(error))
            | Self::Stage(StageError::Sys(error))
            | Self::Trust(TrustError::Save { source: error, .. })
            | Self::Merge(MergeError::Sys(error))
            | Self::Verify(VerifyError::Sys(error)) => Some(error),
            Self::Store(error)
            | Self::Device(DeviceError::Store(error))
            | Self::Stage(StageError::Store(error))
            | Self::Plan(PlanError::Store(error)) => of_store(error),
            Self::Stage(StageError::State(StateError::Sys(error)))
            | Self::Stage(StageError::Verify(VerifyError::Sys(error)))
            | Self::Carry { source: StateError::Sys(error), .. } => Some(error),
            _ => None,
        }
    }
}
