//! Ctrl-C and SIGTERM: the first asks the work to stop at the next safe point, the
//! second quits at once. Either way nothing that was verified is lost.

use std::sync::atomic::{AtomicBool, Ordering};

use varve_sys::task::Cancel;
use varve_term::{Exit, out};

static BUSY: AtomicBool = AtomicBool::new(false);

/// Begins to listen.
pub(crate) fn listen() -> Cancel {
    let cancel = Cancel::new();
    let heard = cancel.clone();
    // Without a handler Ctrl-C ends the program, which is safe too.
    let _ = ctrlc::set_handler(move || {
        if heard.is_cancelled() || !BUSY.load(Ordering::SeqCst) {
            std::process::exit(Exit::Interrupted.code().into());
        }
        heard.cancel();
        out::note("\nstopping; what was fetched and verified is kept (Ctrl-C again quits at once)");
    });
    cancel
}

/// From now on there is work that a first Ctrl-C stops gently.
pub(crate) fn busy() {
    BUSY.store(true, Ordering::SeqCst);
}
