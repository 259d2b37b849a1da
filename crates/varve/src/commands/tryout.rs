//! `try`.

use varve_agent::tryout::{self, Act};
use varve_term::{Exit, Form};

use super::{Answer, Session};
use crate::cli::Try;
use crate::show::tryout as show;

/// There is no lock: nothing is changed, and what is mounted is not collected. The work is
/// never "busy": the first signal ends this program, and the kernel all that it started.
pub(crate) fn run(session: &Session<'_>, args: Try) -> Answer {
    let act = match (args.health, args.boot) {
        (true, _) => Act::Health,
        (_, true) => Act::Boot,
        _ => Act::Command(args.command),
    };
    let device = session.device()?;
    let tried = tryout::run(&device, args.deployment.as_ref(), &act, &session.context())?;
    for left in &tried.left_out {
        session.progress.note(&format!("left out: {left}"));
    }
    // Beside what the command itself said, people want nothing.
    if act == Act::Health || session.form == Form::Json {
        session.answer(&tried, show::checks)?;
    }
    Ok(match tried.status {
        Some(status) => Exit::Of(status),
        None if tried.passed() => Exit::Done,
        None => Exit::Failed,
    })
}
