//! A line of the history is announced before the act that it tells of, so that a power cut
//! between the two cannot lose it.
//!
//! ```text
//! history.next   written: the line, and the sign by which the act is known to be done
//! the act        the selection (or a record) is replaced
//! history        the line is appended
//! history.next   goes
//! ```
//!
//! Whoever takes the right to change the device next settles what a cut left: the sign
//! says whether the act was done, and so whether the line is true. In between nobody but
//! the boot stage changes anything. Of the selection it does nothing but spend tries: each
//! takes one from the tries and adds one to the generation, so the selection alone tells.
//! It spends a probe too, and adds an answer to a search.
//!
//! On a full disk there may be no announcement: the act counts more than its line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use varve_format::deployment::Stack;
use varve_format::probe::{Answer, AskedBy, BISECT, Bisect, MAX_TEXT as MAX_FILE, PROBE, Probe};
use varve_format::selection::Selection;
use varve_format::{DeploymentName, LayerName};
use varve_rootfs::{Deployment, Store, StoreError};
use varve_sys::{SysError, durable};

use crate::history::{self, Record};
use crate::live::Live;
use crate::selection;

/// The file's name in the state root.
pub const FILE: &str = "history.next";
const MAX_TEXT: u64 = 64 << 10;

/// How it is known that an act was done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub(crate) enum Sign {
    /// This selection stands, but for tries that were spent since.
    Selected {
        /// Its generation.
        generation: u64,
        /// What it names.
        latest: DeploymentName,
        /// Tries that it gives.
        tries: Option<u8>,
    },
    /// A deployment, not marked before, is marked as good.
    Confirmed {
        /// Which.
        deployment: DeploymentName,
    },
    /// A deployment stands on other layers, or another tree, than before.
    Restacked {
        /// Which.
        deployment: DeploymentName,
        /// What it stood on before.
        was: Vec<LayerName>,
    },
    /// A deployment is pinned, or is not.
    Pinned {
        /// Which.
        deployment: DeploymentName,
        /// Whether.
        pinned: bool,
    },
    /// Nothing stands here any more.
    Gone {
        /// Below the state root.
        path: String,
    },
    /// The running system asked for a probe of this; boots may have spent it since. No
    /// such probe was there before.
    Probing {
        /// Of which deployment.
        deployment: DeploymentName,
        /// Its layers that are left out.
        off: Vec<LayerName>,
    },
    /// A search goes on, and none did before.
    Searching {
        /// Of which deployment.
        deployment: DeploymentName,
    },
    /// A search has this answer.
    Answered {
        /// How many came before it.
        after: usize,
        /// The answer.
        answer: Answer,
    },
    /// The running system shows a deployment: it stands last in this file, which is gone
    /// with the boot, as what it tells of.
    Shown {
        /// Beside the boot stage's report.
        file: PathBuf,
        /// Which.
        deployment: DeploymentName,
    },
}

#[derive(Serialize, Deserialize)]
struct Announced {
    line: String,
    /// Length of the history before: the line is not looked for before it.
    length: u64,
    sign: Sign,
}

impl Sign {
    /// The sign that a selection was written.
    pub(crate) fn selected(selection: &Selection) -> Self {
        Self::Selected {
            generation: selection.generation,
            latest: selection.latest.clone(),
            tries: selection.tries,
        }
    }

    /// The sign that a deployment stands on something else.
    pub(crate) fn restacked(deployment: &Deployment) -> Self {
        let was = parts(&deployment.record.stack);
        Self::Restacked { deployment: deployment.name().clone(), was }
    }

    fn is_there(&self, store: &Store) -> Result<bool, StoreError> {
        match self {
            Self::Selected { generation, latest, tries } => {
                let Ok(now) = selection::read(store)? else { return Ok(false) };
                let Some(spent) = now.generation.checked_sub(*generation) else {
                    return Ok(false);
                };
                let left = match tries {
                    Some(tries) => u64::from(*tries).checked_sub(spent).map(Some),
                    None => (spent == 0).then_some(None),
                };
                Ok(now.latest == *latest && left == Some(now.tries.map(u64::from)))
            }
            Self::Confirmed { deployment } => store.is_confirmed(deployment),
            Self::Restacked { deployment, was } => {
                Ok(parts(&store.deployment(deployment)?.record.stack) != *was)
            }
            Self::Pinned { deployment, pinned } => {
                Ok(store.deployment(deployment)?.pinned == *pinned)
            }
            Self::Gone { path } => {
                let (dir, name) = path.rsplit_once('/').unwrap_or((".", path));
                Ok(store.dir().open_dir(dir)?.stat_opt(name)?.is_none())
            }
            Self::Probing { deployment, off } => {
                let bytes = store.boot().read_opt(PROBE, MAX_FILE)?;
                let probe = bytes.and_then(|bytes| Probe::parse(&bytes).ok());
                Ok(probe.is_some_and(|probe| {
                    probe.by == AskedBy::Strip
                        && (&probe.deployment, &probe.off) == (deployment, off)
                }))
            }
            Self::Searching { deployment } => {
                Ok(search(store)?.is_some_and(|search| search.deployment == *deployment))
            }
            Self::Answered { after, answer } => {
                Ok(search(store)?.is_some_and(|search| search.answers.get(*after) == Some(answer)))
            }
            Self::Shown { file, deployment } => {
                Ok(Live::in_file(file)?.present() == Some(deployment))
            }
        }
    }
}

fn search(store: &Store) -> Result<Option<Bisect>, StoreError> {
    let bytes = store.boot().read_opt(BISECT, MAX_FILE)?;
    Ok(bytes.and_then(|bytes| Bisect::parse(&bytes).ok()))
}

fn parts(stack: &Stack) -> Vec<LayerName> {
    match stack {
        Stack::Overlay { layers } => layers.clone(),
        Stack::HardLink { tree } => vec![tree.clone()],
    }
}

/// Does an act and tells of it. `act` may complete the line with what is known afterwards
/// alone.
pub(crate) fn told<T, E: From<SysError>>(
    store: &Store,
    mut record: Record,
    sign: Sign,
    act: impl FnOnce(&mut Record) -> Result<T, E>,
) -> Result<T, E> {
    let announced = match announce(store, &record, sign) {
        Err(error) if error.is_no_space() => false,
        other => other.map(|()| true)?,
    };
    // When it fails half done, the next writer finds out by the sign.
    let done = act(&mut record)?;
    match history::append(store.dir(), &record) {
        // The line stands in the announcement, and is appended when there is room.
        Err(error) if announced && error.is_no_space() => return Ok(done),
        Err(error) if error.is_no_space() => {}
        appended => appended?,
    }
    store.dir().remove_all(FILE)?;
    Ok(done)
}

/// Replaces the selection and tells of it: see [`selection::commit`].
pub(crate) fn selected<E: From<SysError>>(
    store: &Store,
    selection: &Selection,
    record: Record,
) -> Result<(), E> {
    told(store, record, Sign::selected(selection), |_| Ok(selection::commit(store, selection)?))
}

fn announce(store: &Store, record: &Record, sign: Sign) -> Result<(), SysError> {
    let length = store.dir().stat_opt(history::FILE)?.map_or(0, |stat| stat.size);
    let announced = Announced { line: record.to_line(), length, sign };
    let text = toml::to_string(&announced).expect("plain data");
    // One that is torn is dropped, and the act is not done then.
    durable::write_file(store.dir(), FILE, text.as_bytes(), 0o644)
}

/// Tells what a cut kept from being told: called by whoever may change the device, before
/// anything else. An announcement that cannot be understood is dropped: nothing but the
/// history depends on it.
pub(crate) fn settle(store: &Store) -> Result<(), StoreError> {
    let Some(bytes) = store.dir().read_opt(FILE, MAX_TEXT)? else { return Ok(()) };
    let announced = std::str::from_utf8(&bytes).ok().and_then(|text| toml::from_str(text).ok());
    if let Some(Announced { line, length, sign }) = announced
        && !line.contains('\n')
        && sign.is_there(store).unwrap_or(false)
        && !history::has_line(store.dir(), length, &line)?
    {
        durable::append_line(store.dir(), history::FILE, &line)?;
    }
    store.dir().remove_all(FILE)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use varve_sys::Dir;

    use super::*;
    use crate::history::Event;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(&Dir::open(folder.path()).unwrap()).unwrap();
        (folder, store)
    }

    fn select(generation: u64, latest: &str, tries: Option<u8>) -> Selection {
        Selection { generation, latest: latest.parse().unwrap(), previous: None, tries }
    }

    fn record() -> Record {
        Record::new(jiff::Timestamp::UNIX_EPOCH, Event::Upgrade).with("deployment", "b")
    }

    fn lines(store: &Store) -> usize {
        assert!(store.dir().stat_opt(FILE).unwrap().is_none(), "it is settled");
        history::read(store.dir()).unwrap().len()
    }

    /// The lines after a cut that left this announcement and this selection.
    fn settled(announced: &Selection, stands: &Selection) -> usize {
        let (_folder, store) = store();
        announce(&store, &record(), Sign::selected(announced)).unwrap();
        selection::commit(&store, stands).unwrap();
        settle(&store).unwrap();
        settle(&store).unwrap();
        lines(&store)
    }

    #[test]
    fn the_selection_tells_whether_it_was_written() {
        let trial = select(5, "b", Some(3));
        assert_eq!(settled(&trial, &select(4, "a", None)), 0, "cut before");
        assert_eq!(settled(&trial, &select(5, "b", Some(3))), 1, "cut after");
        assert_eq!(settled(&trial, &select(7, "b", Some(1))), 1, "and two tries spent");
        assert_eq!(settled(&trial, &select(8, "b", Some(0))), 1, "all tries spent");
        // A try given back: before it there was 5, 2; a boot later 6, 1.
        let refund = select(6, "b", Some(3));
        assert_eq!(settled(&refund, &select(5, "b", Some(2))), 0);
        assert_eq!(settled(&refund, &select(6, "b", Some(1))), 0, "spent, not given back");
        assert_eq!(settled(&refund, &select(7, "b", Some(2))), 1);
        let good = select(6, "b", None);
        assert_eq!(settled(&good, &select(6, "b", Some(2))), 0, "a try spent, not confirmed");
        assert_eq!(settled(&good, &select(6, "b", None)), 1);
    }

    #[test]
    fn a_line_is_told_once_and_a_damaged_announcement_is_dropped() {
        let (_folder, store) = store();
        let told_of = select(1, "b", None);
        selected::<SysError>(&store, &told_of, record()).unwrap();
        assert_eq!(lines(&store), 1);
        // Cut before the announcement went, or its going was not durable.
        let line = record().to_line();
        let again = Announced { line, length: 0, sign: Sign::selected(&told_of) };
        let text = toml::to_string(&again).unwrap();
        for text in [&text[..], "line = ", "\u{0}"] {
            durable::replace_file(store.dir(), FILE, text.as_bytes(), 0o644).unwrap();
            settle(&store).unwrap();
            assert_eq!(lines(&store), 1);
        }
    }

    #[test]
    fn a_live_change_is_told_when_it_is_there() {
        let (folder, store) = store();
        let file = folder.path().join("live.toml");
        let deployment: DeploymentName = "b".parse().unwrap();
        for (last, told) in [(None, 0), (Some("a"), 0), (Some("b"), 1)] {
            if let Some(last) = last {
                let text = format!("deployments = [\"b\", \"{last}\"]\n");
                let dir = Dir::open(folder.path()).unwrap();
                durable::replace_file(&dir, "live.toml", text.as_bytes(), 0o644).unwrap();
            }
            let sign = Sign::Shown { file: file.clone(), deployment: deployment.clone() };
            announce(&store, &record(), sign).unwrap();
            settle(&store).unwrap();
            assert_eq!(lines(&store), told, "{last:?}");
        }
    }
}
