//! Back to what the release has, in levels: as a new deployment of the same stack, which
//! is tried at the next boot and rolled back like an upgrade.
//!
//! | level | in the new deployment |
//! | --- | --- |
//! | `etc` | `/etc` is the release's, but for `/etc/varve` |
//! | `state` | and every other versioned state path, and the writable top of the root |
//! | `layers` | no own layer is on; state stays |
//! | `all` | both |
//!
//! Nothing is deleted: the deployment before keeps its own. Shared and bound state paths
//! are one set for all deployments, which no new deployment can have of its own: they are
//! left alone and named in the answer.

use serde::Serialize;
use varve_format::deployment::{OwnLayer, StateDir, StateMode};

use crate::device::{Device, Writer};
use crate::error::Result;
use crate::layer::{self, Changed, Proposed};
use crate::observe::Observed;
use crate::upgrade::Context;

/// How much is reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// `/etc`.
    Etc,
    /// All versioned state.
    State,
    /// The own layers are switched off.
    Layers,
    /// State and layers.
    All,
}

/// What was reset, or would be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Reset {
    /// The change of the stack.
    #[serde(flatten)]
    pub changed: Changed,
    /// The state paths that begin anew.
    pub fresh: Vec<StateDir>,
    /// Whether the writable top of the root begins anew.
    pub fresh_root: bool,
    /// State paths that all deployments share: left alone.
    pub left: Vec<StateDir>,
}

/// Makes and promotes the deployment.
pub fn reset(
    device: &Device,
    writer: &Writer,
    level: Level,
    dry_run: bool,
    context: &Context<'_>,
) -> Result<Reset> {
    let observed = Observed::look(device)?;
    let base = layer::base(&observed)?;
    let etc = StateDir::new("/etc").expect("a constant");
    let with_state = matches!(level, Level::State | Level::All);
    let mut state = base.record.state.clone();
    let mut left = Vec::new();
    for path in &mut state {
        let asked = with_state || (level == Level::Etc && path.path == etc);
        path.fresh = asked && path.mode == StateMode::Versioned;
        if asked && !path.fresh {
            left.push(path.path.clone());
        }
    }
    let mut own = base.record.own.clone();
    if matches!(level, Level::Layers | Level::All) {
        for layer in own.iter_mut().filter(|layer| layer.on) {
            *layer = OwnLayer { on: false, ..layer.clone() };
        }
    }
    let fresh = state.iter().filter(|path| path.fresh).map(|path| path.path.clone()).collect();
    let what = match level {
        Level::Etc => "reset etc",
        Level::State => "reset state",
        Level::Layers => "reset layers",
        Level::All => "reset all",
    };
    let proposed =
        Proposed { own, state, fresh_root: with_state, what: what.to_owned(), layer: None };
    let changed = layer::propose(device, writer, &observed, base, proposed, dry_run, context)?;
    Ok(Reset { changed, fresh, fresh_root: with_state, left })
}
