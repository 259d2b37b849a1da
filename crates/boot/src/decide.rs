//! The boot decision, as a pure function of what the boot stage sees.
//!
//! The rules, the first that gives a deployment which is there wins:
//!
//! | | when | boots | spends a try |
//! | --- | --- | --- | --- |
//! | 1 | `varve.deployment=NAME` | NAME | no: a person asked |
//! | 2 | the menu, a probe or a search asks for a stack ([`Wanted`]) | it, without some layers | no: it is tried once anyway |
//! | 2b | a key is held | the previous | no |
//! | 3 | the latest is on trial with tries left | the latest | yes |
//! | 4 | the latest is confirmed | the latest | no |
//! | 5 | | the previous | no |
//! | 6 | | any confirmed one, newest first | no |
//! | 7 | there is no usable selection | any one, newest first | no |
//!
//! A latest on trial with no tries left is chosen by the rules 1 and 2 alone. Whatever a rule
//! names and cannot give is reported in [`Decision::passed_over`].

use std::fmt;

use varve_format::deployment::RootMode;
use varve_format::selection::Selection;
use varve_format::{DeploymentName, LayerName};

/// A deployment whose record is on the disk and can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnDisk {
    /// Its name.
    pub name: DeploymentName,
    /// Its place in the device's own order of staging; larger is newer.
    pub number: u64,
    /// Whether it has been found good once.
    pub confirmed: bool,
}

/// Why there is no selection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unusable {
    /// The file is not there.
    Missing,
    /// It cannot be read, or its text is damaged; why, in words.
    Damaged(String),
}

/// What the kernel's command line asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wishes {
    /// `varve.deployment=NAME`.
    pub deployment: Option<String>,
    /// `varve.strip=N`: how many layers to leave out, from the top.
    pub strip: u32,
    /// `varve.root=read-only|volatile|persistent`: instead of the deployment's own mode.
    pub root: Option<RootMode>,
}

impl Wishes {
    /// Takes the words `varve.…` from a command line; `value` gives a key's value.
    /// What is not understood is left out and named, to be shown: it must not keep a
    /// machine from booting.
    pub fn read<'a>(value: impl Fn(&str) -> Option<&'a str>) -> (Wishes, Vec<String>) {
        let mut bad = Vec::new();
        let strip = value("varve.strip").map_or(0, |text| {
            text.parse().unwrap_or_else(|_| {
                bad.push(format!("varve.strip={text}: expected a number of layers"));
                0
            })
        });
        let root = value("varve.root").and_then(|text| match text {
            "read-only" => Some(RootMode::ReadOnly),
            "volatile" => Some(RootMode::Volatile),
            "persistent" => Some(RootMode::Persistent),
            _ => {
                let expected = "expected read-only, volatile or persistent";
                bad.push(format!("varve.root={text}: {expected}"));
                None
            }
        });
        let deployment = value("varve.deployment").map(str::to_owned);
        (Wishes { deployment, strip, root }, bad)
    }
}

/// A stack that is asked for, for this boot alone: a deployment without some of its layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Which deployment.
    pub deployment: DeploymentName,
    /// What is left out.
    pub off: Vec<LayerName>,
    /// Who asks: [`Reason::Menu`], [`Reason::Probe`] or [`Reason::Search`].
    pub reason: Reason,
}

/// All that the decision depends on.
#[derive(Debug, Clone)]
pub struct Inputs<'a> {
    /// The selection, or why there is none.
    pub selection: Result<&'a Selection, Unusable>,
    /// The deployments that are there, in any order.
    pub on_disk: &'a [OnDisk],
    /// From the kernel's command line.
    pub wishes: &'a Wishes,
    /// Whether a key asks for the previous.
    pub key_held: bool,
    /// What the menu, a probe or a search asks for; none once it could not be put together.
    pub wanted: Option<&'a Wanted>,
    /// Deployments that could not be put together during this boot, and why.
    pub failed: &'a [(DeploymentName, String)],
}

/// By which rule a deployment was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Rule 1.
    CommandLine,
    /// Rule 2, chosen at the menu.
    Menu,
    /// Rule 2, as `varve strip` left it.
    Probe,
    /// Rule 2, as the search for the bad layer goes.
    Search,
    /// Rule 2b.
    KeyHeld,
    /// Rule 3; `left` tries remain after this boot.
    Trial {
        /// Tries left, this boot's not counted.
        left: u8,
    },
    /// Rule 4.
    Latest,
    /// Rule 5.
    Previous,
    /// Rule 6.
    AnyConfirmed,
    /// Rule 7.
    LastResort,
}

impl Reason {
    /// One word for machines, as `boot.toml` has it.
    pub fn code(self) -> &'static str {
        match self {
            Reason::CommandLine => "command-line",
            Reason::Menu => "menu",
            Reason::Probe => "probe",
            Reason::Search => "search",
            Reason::KeyHeld => "key-held",
            Reason::Trial { .. } => "trial",
            Reason::Latest => "latest",
            Reason::Previous => "previous",
            Reason::AnyConfirmed => "any-confirmed",
            Reason::LastResort => "last-resort",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::CommandLine => f.write_str("the kernel's command line names it"),
            Reason::Menu => f.write_str("chosen at the menu"),
            Reason::Probe => f.write_str("tried once, as varve strip asked"),
            Reason::Search => f.write_str("a part of the search for the bad layer"),
            Reason::KeyHeld => f.write_str("the previous one, as a key is held"),
            Reason::Trial { left: 0 } => f.write_str("the latest, on its last trial"),
            Reason::Trial { left } => write!(f, "the latest, on trial, {left} more left"),
            Reason::Latest => f.write_str("the latest"),
            Reason::Previous => f.write_str("the previous one"),
            Reason::AnyConfirmed => f.write_str("the newest one known to be good"),
            Reason::LastResort => f.write_str("the newest one; none is known to be good"),
        }
    }
}

/// A deployment that a rule named and that did not boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedOver {
    /// Its name, as it was asked for.
    pub name: String,
    /// Why not.
    pub why: WhyPassedOver,
}

/// Why a deployment that a rule named did not boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhyPassedOver {
    /// There is no readable record of that name.
    NotHere,
    /// It was on trial and all its tries were spent.
    NoTriesLeft,
    /// It could not be put together; why, in words.
    Failed(String),
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.why {
            WhyPassedOver::NotHere => write!(f, "{name} is not on this device"),
            WhyPassedOver::NoTriesLeft => write!(f, "{name} failed its trials"),
            WhyPassedOver::Failed(why) => write!(f, "{name} could not be put together: {why}"),
        }
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What to boot.
    pub deployment: DeploymentName,
    /// By which rule.
    pub reason: Reason,
    /// The selection to make durable *before* anything is mounted.
    pub spend_try: Option<Selection>,
    /// How many layers to leave out, from the top; a base is never left out.
    pub strip: u32,
    /// Layers to leave out by name.
    pub off: Vec<LayerName>,
    /// The root mode asked for, instead of the deployment's own.
    pub root: Option<RootMode>,
    /// What would have come before, in the order of the rules.
    pub passed_over: Vec<PassedOver>,
}

impl Decision {
    /// Whether the menu, a probe or a search asked for it.
    pub fn is_wanted(&self) -> bool {
        matches!(self.reason, Reason::Menu | Reason::Probe | Reason::Search)
    }
}

/// Decides. None: nothing here may be booted; what was looked at is in the error.
pub fn decide(inputs: &Inputs<'_>) -> Result<Decision, Vec<PassedOver>> {
    let mut passed_over: Vec<PassedOver> = Vec::new();
    for (name, reason) in candidates(inputs) {
        let why = match reason {
            // The last try may be this boot's own, spent on what could not be put together.
            Rule::NoTriesLeft => match usable(inputs, &name) {
                Err(why @ WhyPassedOver::Failed(_)) => why,
                _ => WhyPassedOver::NoTriesLeft,
            },
            Rule::Choose(reason) => match usable(inputs, &name) {
                Ok(deployment) => {
                    let wanted = inputs.wanted.filter(|wanted| wanted.reason == reason);
                    return Ok(Decision {
                        deployment: deployment.clone(),
                        reason,
                        spend_try: spent(inputs, reason),
                        strip: inputs.wishes.strip,
                        off: wanted.map_or(Vec::new(), |wanted| wanted.off.clone()),
                        root: inputs.wishes.root,
                        passed_over,
                    });
                }
                Err(why) => why,
            },
        };
        let pass = PassedOver { name, why };
        if !passed_over.contains(&pass) {
            passed_over.push(pass);
        }
    }
    Err(passed_over)
}

enum Rule {
    Choose(Reason),
    /// Not a choice: said, so that the user learns why the latest does not boot.
    NoTriesLeft,
}

/// What the rules name, in their order; whether it is there is not looked at yet.
fn candidates(inputs: &Inputs<'_>) -> Vec<(String, Rule)> {
    let mut names = Vec::new();
    let mut name = |name: &str, rule| names.push((name.to_owned(), rule));
    let mut newest_first: Vec<&OnDisk> = inputs.on_disk.iter().collect();
    newest_first.sort_by_key(|deployment| std::cmp::Reverse(deployment.number));
    let confirmed: Vec<&OnDisk> =
        newest_first.iter().copied().filter(|deployment| deployment.confirmed).collect();
    let selection = inputs.selection.as_ref().ok();

    if let Some(asked) = &inputs.wishes.deployment {
        name(asked, Rule::Choose(Reason::CommandLine));
    }
    if let Some(wanted) = inputs.wanted {
        name(wanted.deployment.as_str(), Rule::Choose(wanted.reason));
    }
    let previous = match selection {
        // A previous that is the latest itself (edited by hand) would evade its tries.
        Some(selection) => {
            selection.previous.as_ref().filter(|previous| **previous != selection.latest)
        }
        // Without a selection the newest confirmed one stands for the latest.
        None => confirmed.get(1).map(|deployment| &deployment.name),
    };
    if let Some(previous) = previous.filter(|_| inputs.key_held) {
        name(previous.as_str(), Rule::Choose(Reason::KeyHeld));
    }
    if let Some(selection) = selection {
        let latest = selection.latest.as_str();
        match selection.tries {
            Some(0) => name(latest, Rule::NoTriesLeft),
            Some(tries) => name(latest, Rule::Choose(Reason::Trial { left: tries - 1 })),
            None => name(latest, Rule::Choose(Reason::Latest)),
        }
        if let Some(previous) = previous {
            name(previous.as_str(), Rule::Choose(Reason::Previous));
        }
    }
    // The latest has had its rule; here it would boot without a try being spent.
    let others = |deployment: &&&OnDisk| {
        selection.is_none_or(|selection| selection.latest != deployment.name)
    };
    for deployment in confirmed.iter().filter(others) {
        name(deployment.name.as_str(), Rule::Choose(Reason::AnyConfirmed));
    }
    if selection.is_none() {
        for deployment in newest_first {
            name(deployment.name.as_str(), Rule::Choose(Reason::LastResort));
        }
    }
    names
}

fn usable<'a>(inputs: &Inputs<'a>, name: &str) -> Result<&'a DeploymentName, WhyPassedOver> {
    let here = inputs.on_disk.iter().find(|deployment| deployment.name.as_str() == name);
    let here = &here.ok_or(WhyPassedOver::NotHere)?.name;
    match inputs.failed.iter().find(|(failed, _)| failed == here) {
        Some((_, why)) => Err(WhyPassedOver::Failed(why.clone())),
        None => Ok(here),
    }
}

fn spent(inputs: &Inputs<'_>, reason: Reason) -> Option<Selection> {
    let Reason::Trial { left } = reason else { return None };
    let selection = (*inputs.selection.as_ref().ok()?).clone();
    Some(Selection { generation: selection.generation + 1, tries: Some(left), ..selection })
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
