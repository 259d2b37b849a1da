//! What asks for another stack at this boot: a probe that waits, a search under way, the
//! menu. Each is noted on the disk before anything is mounted, so that it boots once.

use varve_boot::{Reason, Wanted, bisect};
use varve_format::DeploymentName;
use varve_format::probe::{AskedBy, BISECT, Bisect, MAX_TEXT, PROBE, Probe, Verdict};
use varve_rootfs::Store;
use varve_sys::whole_message;
use varve_sys::{SysError, durable};

/// The files in `boot/`, and what they ask for.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// The probe that waits, or the last one that was taken.
    pub probe: Option<Probe>,
    /// The search.
    pub search: Option<Bisect>,
    /// What this boot is to be; none: what the selection says.
    pub wanted: Option<Wanted>,
}

impl Asked {
    /// Reads both files. What cannot be read is a warning, and asks for nothing.
    pub(crate) fn read(store: &Store, warnings: &mut Vec<String>) -> Asked {
        let mut file = |name: &str| match store.boot().read_opt(name, MAX_TEXT) {
            Ok(bytes) => bytes,
            Err(error) => {
                warnings.push(whole_message(&error));
                None
            }
        };
        let (probe, search) = (file(PROBE), file(BISECT));
        let probe = probe.map(|bytes| Probe::parse(&bytes)).transpose();
        let search = search.map(|bytes| Bisect::parse(&bytes)).transpose();
        let mut bad = |name: &str, error: &dyn std::error::Error| {
            warnings.push(format!("boot/{name} is not used: {}", whole_message(error)));
        };
        let mut asked = Asked {
            probe: probe.unwrap_or_else(|error| {
                bad(PROBE, &error);
                None
            }),
            search: search.unwrap_or_else(|error| {
                bad(BISECT, &error);
                None
            }),
            wanted: None,
        };
        asked.look();
        asked
    }

    /// A probe that waits comes before a search.
    fn look(&mut self) {
        self.wanted = match &mut self.probe {
            Some(probe) if probe.tries > 0 => {
                probe.tries -= 1;
                let (deployment, off) = (probe.deployment.clone(), probe.off.clone());
                Some(Wanted { deployment, off, reason: Reason::Probe })
            }
            _ => self.search.as_mut().and_then(next_of),
        };
    }

    /// The menu asks for this deployment without these layers; an empty list puts all of
    /// them back.
    pub(crate) fn by_menu(&mut self, probe: Probe) {
        self.stop_search();
        let (deployment, off) = (probe.deployment.clone(), probe.off.clone());
        self.wanted = (!off.is_empty()).then_some(Wanted { deployment, off, reason: Reason::Menu });
        self.probe = Some(Probe { tries: 0, by: AskedBy::Menu, ..probe });
    }

    /// The menu asks for a search.
    pub(crate) fn by_search(&mut self, search: Bisect) {
        self.wanted = next_of(self.search.insert(search));
    }

    /// The menu asks for the previous system, which is none of this.
    pub(crate) fn nothing(&mut self) {
        self.wanted = None;
    }

    fn stop_search(&mut self) {
        if let Some(search) = &mut self.search {
            (search.active, search.running) = (false, None);
        }
    }

    /// Makes durable what this boot takes. Without it a probe is not taken, or one that
    /// hangs would be tried for ever.
    pub(crate) fn note(&self, store: &Store, reason: Reason) -> Result<(), SysError> {
        let write =
            |name, text: String| durable::replace_file(store.boot(), name, text.as_bytes(), 0o644);
        let (probe, search) = (self.probe.as_ref(), self.search.as_ref());
        match reason {
            Reason::Probe => probe.map_or(Ok(()), |probe| write(PROBE, probe.to_text())),
            Reason::Search => search.map_or(Ok(()), |search| write(BISECT, search.to_text())),
            _ => {
                probe.map_or(Ok(()), |probe| write(PROBE, probe.to_text()))?;
                search.map_or(Ok(()), |search| write(BISECT, search.to_text()))
            }
        }
    }

    /// What was asked for could not be put together. A search takes the next probe.
    pub(crate) fn failed(&mut self, why: &str) {
        let searched = self.wanted.take().is_some_and(|wanted| wanted.reason == Reason::Search);
        // A search that is over has nothing else to offer.
        if let Some(search) = &mut self.search
            && searched
            && search.running.is_some()
        {
            bisect::answer(search, Verdict::Bad, why);
            self.wanted = next_of(search);
        }
    }
}

fn next_of(search: &mut Bisect) -> Option<Wanted> {
    let off = bisect::at_boot(search)?;
    let (deployment, off) = (search.deployment.clone(), search.names(&off));
    Some(Wanted { deployment, off, reason: Reason::Search })
}

/// What the last try was, for the menu.
pub(crate) fn last_try(asked: &Asked, deployment: &DeploymentName) -> Option<String> {
    let list = |names: &[varve_format::LayerName]| {
        names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    if let Some(search) = asked.search.as_ref().filter(|search| search.deployment == *deployment) {
        match bisect::next(search) {
            bisect::Next::Over(bisect::Finding::Found { layers, .. }) => {
                return Some(format!("The search found: {}.", list(&search.names(&layers))));
            }
            bisect::Next::Probe(_) if search.active => {
                let answers = search.answers.len();
                return Some(format!("A search is under way: {answers} answers so far."));
            }
            _ => {}
        }
    }
    let probe = asked.probe.as_ref()?;
    let last = probe.deployment == *deployment && !probe.off.is_empty();
    last.then(|| format!("The last try was without {}.", list(&probe.off)))
}
