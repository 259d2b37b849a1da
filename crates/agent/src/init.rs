//! The first deployment of a physical root: the way an image is made.
//!
//! ```text
//! empty directory + root of trust + source
//!   -> /varve, trust -> release -> staged as a base, verified -> confirmed, the latest
//!   -> the configuration into the new system's /etc, so that it finds its updates
//! ```
//!
//! The commit point is the selection: until it stands the root boots nothing, and a
//! second run goes on with what the first fetched.

use varve_boot::transition;
use varve_fetch::Trust;
use varve_format::TreePath;
use varve_format::deployment::{ROOT_SLUG, RootMode, StateDir, StateMode, StatePath};
use varve_format::manifest::Manifest;
use varve_rootfs::{Deployment, Store};
use varve_sys::{Attributes, Dir, durable};

use crate::announce;
use crate::choose::Wish;
use crate::config::{self, Config, Source};
use crate::device::{self, Device, Places};
use crate::error::{Error, Result};
use crate::history::{Event, Record};
use crate::observe::Observed;
use crate::selection;
use crate::upgrade::{self, Context, Prepared};

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Init<'a> {
    /// The bytes of the repository's `N.root.json`, handed over by a way that is trusted.
    pub trust_root: &'a [u8],
    /// Where to fetch from now; those of the configuration when empty.
    pub sources: Vec<Source>,
    /// The configuration's text, and its file's name for messages; none: made up of the
    /// sources and the usual state paths.
    pub config: Option<(&'a str, &'a std::path::Path)>,
    /// Which release, and no other.
    pub wish: Wish,
}

/// What was made.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Made {
    /// The deployment that boots.
    pub deployment: varve_format::DeploymentName,
    /// The release's name.
    pub release: String,
    /// Bytes over the wire.
    pub fetched: u64,
    /// Whether the configuration was put where the booted system finds it.
    pub config_installed: bool,
}

/// State that a system usually has; those that a release has no directory for are left
/// out of the configuration that is made up.
const USUAL_STATE: [(&str, StateMode); 4] = [
    ("/etc", StateMode::Versioned),
    ("/var", StateMode::Shared),
    ("/home", StateMode::Shared),
    ("/root", StateMode::Shared),
];

/// Makes a device of a physical root.
pub fn init(places: Places, init: &Init<'_>, context: &Context<'_>) -> Result<Made> {
    let physical_root = Dir::open(&places.physical_root)?;
    let mut config = match init.config {
        Some((text, file)) => Config::parse(text, file).map_err(device::DeviceError::from)?,
        None => Config { state: usual_state(), ..Config::default() },
    };
    if !init.sources.is_empty() {
        config.sources = init.sources.clone();
    }
    let store = Store::create(&physical_root)?;
    let writer = device::lock(&store, "init", context.now)?;
    let there = store.deployments()?.items;
    if let (Some(first), Ok(_)) = (there.first(), selection::read(&store)?) {
        let path = places.physical_root.display().to_string();
        return Err(Error::NotEmpty { path, name: first.name().clone() });
    }
    let trust_dir = store.dir().make_dir("trust", 0o700)?;
    Trust::init(&trust_dir, init.trust_root, context.now)?;
    let mut device = Device { places, store, config };
    let prepared = match upgrade::prepare(&device, &writer, &init.wish, false, context) {
        // The usual state paths are a proposal: those that the release has are taken.
        Err(Error::NoStateDirectory { paths }) if init.config.is_none() => {
            device.config.state.retain(|state| !paths.contains(&state.path));
            upgrade::prepare(&device, &writer, &init.wish, false, context)?
        }
        other => other?,
    };
    let installed = match init.config {
        Some((text, _)) => text.to_owned(),
        None => made_up(&init.sources, &device.config.state),
    };
    let (deployment, release, fetched) = match prepared {
        Prepared::Ready(ready) => {
            let release = ready.plan.release.name.to_string();
            let (deployment, fetched) = ready.stage_only(&device, &writer, context)?;
            (deployment, release, fetched)
        }
        // Cut just before the selection was written: the deployment is here, and good.
        Prepared::UpToDate { .. } => {
            let observed = Observed::look(&device)?;
            let there = observed.latest().ok_or(Error::NothingGood)?.clone();
            let release = there.record.release.as_ref().map(|release| release.name.to_string());
            (there, release.unwrap_or_default(), 0)
        }
    };
    let config_installed = install_config(&device.store, &deployment, &installed)?;
    // The deployment's name and the configuration, before the selection names them.
    durable::sync_file_system(device.store.dir())?;
    device.store.mark_confirmed(deployment.name())?;
    let selection = transition::promote(None, deployment.name(), None)?;
    let record = Record::new(context.now, Event::Init)
        .with("release", &release)
        .with("deployment", deployment.name())
        .with("fetched", fetched);
    announce::selected::<Error>(&device.store, &selection, record)?;
    crate::collect::by_policy(&device, &writer, true, context)?;
    let deployment = deployment.name().clone();
    Ok(Made { deployment, release, fetched, config_installed })
}

fn usual_state() -> Vec<StatePath> {
    let state = USUAL_STATE.into_iter();
    state
        .map(|(path, mode)| StatePath {
            path: StateDir::new(path).expect("absolute"),
            mode,
            fresh: false,
        })
        .collect()
}

/// The configuration of a device that was made without one.
fn made_up(sources: &[Source], state: &[StatePath]) -> String {
    let mut text =
        "# Made by `varve init`; see the operator's guide for every setting.\nsources = ["
            .to_owned();
    let list: Vec<_> = sources.iter().map(|source| format!("{:?}", source.to_string())).collect();
    text.push_str(&list.join(", "));
    text.push_str("]\n");
    for StatePath { path, mode, .. } in state {
        let mode = if *mode == StateMode::Versioned { "versioned" } else { "shared" };
        text.push_str(&format!("\n[[state]]\npath = \"{path}\"\nmode = {mode:?}\n"));
    }
    text
}

/// Puts the configuration into the new system's `/etc/varve/`, as a change of its user:
/// into the state that covers `/etc`. Whether there is such state.
fn install_config(store: &Store, deployment: &Deployment, text: &str) -> Result<bool> {
    let record = &deployment.record;
    let covering = record.state.iter().find(|state| {
        let varve = TreePath::new(b"etc/varve").expect("a plain path");
        varve.starts_with(state.path.tree_path())
    });
    let name = deployment.name().as_str();
    let place = match covering {
        Some(state) => {
            let slug = state.path.slug();
            let place = match state.mode {
                StateMode::Versioned => format!("versioned/{name}/{slug}/upper"),
                StateMode::Shared => format!("shared/{slug}/upper"),
                StateMode::Bind => format!("bind/{slug}"),
            };
            Some((place, state.path.tree_path().clone()))
        }
        None if record.root_mode == RootMode::Persistent => {
            Some((format!("versioned/{name}/{ROOT_SLUG}/upper"), TreePath::root()))
        }
        None => None,
    };
    let Some((place, mut path)) = place else { return Ok(false) };
    let manifest = store.manifest(deployment.name())?;
    let mut dir = store.state().open_dir(&place)?;
    let file = TreePath::new(&config::PATH.as_bytes()[1..]).expect("a plain path");
    let above = file.parent().expect("it lies in a directory");
    for component in above.components().skip(path.components().count()) {
        path = path.join(component.as_encoded_bytes()).expect("a plain path");
        dir = like_release(&dir, component.as_ref(), &path, &manifest)?;
    }
    let name = file.name().to_string_lossy();
    // Left by a run that was cut.
    dir.remove_all(&*name)?;
    dir.create_file(&*name, 0o644)?.write_all(text.as_bytes())?;
    Ok(true)
}

/// A directory in state, with the attributes that the release gives it: what lies over
/// the release's directory shows its own.
fn like_release(
    dir: &Dir,
    name: &std::path::Path,
    path: &TreePath,
    manifest: &Manifest,
) -> Result<Dir> {
    if let Some(there) = dir.open_dir_opt(name)? {
        return Ok(there);
    }
    let made = dir.make_dir(name, 0o755)?;
    if let Some(entry) = manifest.get(path) {
        let meta = &entry.meta;
        made.set_attributes(
            ".",
            &Attributes {
                mode: meta.mode,
                uid: meta.uid,
                gid: meta.gid,
                mtime: (meta.mtime.seconds, meta.mtime.nanoseconds),
                xattrs: &meta.xattrs,
            },
        )?;
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_made_up_configuration_is_a_good_one() {
        let sources: Vec<Source> =
            ["http://a.example/x", "/media/\"stick\""].map(|s| s.parse().unwrap()).to_vec();
        let config = Config::parse(&made_up(&sources, &usual_state()), config::PATH).unwrap();
        assert_eq!(config.sources, sources);
        assert_eq!(config.state, usual_state());
    }
}
