//! Exit codes, the same for both command lines, documented in `docs/operators-guide.md`.

/// How a command ended, for scripts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// 0: done; also when there was nothing to change.
    Done,
    /// 1: failed for a reason that has no code of its own.
    Failed,
    /// 2: the command line or the configuration is wrong; nothing was begun.
    Usage,
    /// 3: `check` alone: there is nothing newer.
    UpToDate,
    /// 4: refused: by policy, for want of space, because something else is at work.
    /// Nothing was changed.
    Refused,
    /// 5: signed data is missing, wrong, expired or older than what was seen before; or
    /// what is on the disk is not what was signed.
    Untrusted,
    /// 6: could not check: no source could be reached. This is not "nothing newer".
    CouldNotCheck,
    /// 130: stopped by Ctrl-C (or SIGTERM); what was verified is kept.
    Interrupted,
    /// Any: `try` alone ends as the command that it ran.
    Of(u8),
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::UpToDate => 3,
            Self::Refused => 4,
            Self::Untrusted => 5,
            Self::CouldNotCheck => 6,
            Self::Interrupted => 130,
            Self::Of(code) => code,
        }
    }

    /// The word in JSON answers.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::UpToDate => "up-to-date",
            Self::Refused => "refused",
            Self::Untrusted => "untrusted",
            Self::CouldNotCheck => "could-not-check",
            Self::Interrupted => "interrupted",
            Self::Of(_) => "of-the-command",
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
