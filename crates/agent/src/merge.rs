//! Merging by policy and by hand.
//!
//! ```text
//! upgrade              before the stack would become deeper than `layers`
//! merge, by a timer    the same stack earlier, once it has worked for `[fold]` days and boots
//! merge --now          any stack of two layers or more
//! ```

use serde::Serialize;
use varve_format::deployment::Stack;
use varve_format::proven::Proven;
use varve_rootfs::Deployment;
use varve_rootfs::verify::Level;

use crate::announce::{self, Sign};
use crate::config::{Config, Verify};
use crate::device::{Device, Writer};
use crate::error::Result;
use crate::history::{Event, Record};
use crate::plan::layers_to_merge;
use crate::upgrade::Context;

/// Whether the latest deployment is to be folded by itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Due {
    /// It is.
    Now,
    /// Its stack is not so deep that the next upgrade would fold it.
    NotDeep,
    /// Not yet: it has not worked for long enough.
    Later {
        /// So many boots are still to be good.
        boots: u32,
        /// So many seconds are still to pass.
        seconds: u64,
    },
    /// It does not run whole and confirmed: nothing is known of how long it works.
    NotProven,
}

/// Whether a stack that has worked for so long is to be folded. Pure.
pub fn due(stack: &Stack, proven: Option<&Proven>, config: &Config) -> Due {
    if layers_to_merge(stack.layers(), config).is_empty() {
        return Due::NotDeep;
    }
    let Some(proven) = proven else { return Due::NotProven };
    let wanted = u64::from(config.fold.days) * 24 * 60 * 60;
    let boots = config.fold.boots.saturating_sub(proven.boots);
    let seconds = wanted.saturating_sub(proven.seconds);
    if boots == 0 && seconds == 0 { Due::Now } else { Due::Later { boots, seconds } }
}

/// Folds all layers of a deployment into one new base. What runs from the old layers is
/// not disturbed; they go when nothing is mounted on them.
pub fn merge(
    device: &Device,
    _writer: &Writer,
    deployment: &Deployment,
    context: &Context<'_>,
) -> Result<Deployment> {
    let layers = deployment.record.stack.layers().len();
    // What the merge links was verified when it was staged. With "full" the upgrade reads
    // all of it again when it plans what is laid upon it.
    let level = match device.config.verify {
        Verify::Full => Level::NewContents,
        Verify::New => Level::Structure,
    };
    let name = deployment.name();
    let record =
        Record::new(context.now, Event::Merge).with("deployment", name).with("layers", layers);
    announce::told(&device.store, record, Sign::restacked(deployment), |record| {
        let merged = varve_rootfs::merge::merge(
            &device.store,
            name,
            0..layers,
            context.now.as_second(),
            level,
            context.progress,
            context.cancel,
        )?;
        record.add("into", &merged.layer);
        Ok(merged.deployment)
    })
}

#[cfg(test)]
mod tests {
    use varve_format::proven::Moment;

    use super::*;

    #[test]
    fn a_deep_stack_is_folded_once_it_has_worked_for_days_and_boots() {
        let names = ["u1", "base"].map(|name| name.parse().unwrap());
        let stack = Stack::Overlay { layers: names.to_vec() };
        let config = Config::default();
        let day = 24 * 60 * 60;
        let at = |boot: &str, uptime| Moment { boot: boot.to_owned(), uptime, clock: 0 };
        let mut proven = Proven::default().note(&at("a", 0), true);
        assert_eq!(due(&stack, Some(&proven), &config), Due::Later { boots: 2, seconds: 3 * day });
        proven = proven.note(&at("a", 3 * day), false);
        assert_eq!(due(&stack, Some(&proven), &config), Due::Later { boots: 2, seconds: 0 });
        proven = proven.note(&at("b", 1), true).note(&at("c", 1), true);
        assert_eq!(due(&stack, Some(&proven), &config), Due::Now);
        assert_eq!(due(&stack, None, &config), Due::NotProven);
        let more = Config { layers: 3, ..Config::default() };
        assert_eq!(due(&stack, Some(&proven), &more), Due::NotDeep);
        let one = Stack::Overlay { layers: names[1..].to_vec() };
        assert_eq!(due(&one, Some(&proven), &config), Due::NotDeep);
        let tree = Stack::HardLink { tree: names[0].clone() };
        assert_eq!(due(&tree, Some(&proven), &config), Due::NotDeep);
    }
}
