//! What `layer …` says.

use varve_agent::layer::check::SwitchedOff;
use varve_agent::layer::{Added, Changed, DiffEntry, Exported, Imported, LayerStatus, Place, What};
use varve_format::deployment::OwnLayer;
use varve_term::Columns;
use varve_term::human::{bytes, plural};

use crate::commands::layer::Renamed;

pub(crate) fn list(layers: &[LayerStatus]) -> String {
    let mut table = Columns::new(&["LAYER", "KIND", "MADE", "TAKES", "ALONE", "STATE", "TITLE"]);
    for layer in layers {
        table.row([
            layer.name.to_string(),
            layer.kind.to_string(),
            layer.created.strftime("%Y-%m-%d").to_string(),
            bytes(layer.cost.total),
            bytes(layer.cost.alone),
            place(&layer.place),
            layer.title.clone(),
        ]);
    }
    if table.is_empty() {
        return "There is no layer here.\n".to_owned();
    }
    table.to_string()
}

fn place(place: &Place) -> String {
    match place {
        Place::On => "on".to_owned(),
        Place::Off { why } if why.is_empty() => "off".to_owned(),
        Place::Off { why } => format!("off: {why}"),
        Place::Release => "always".to_owned(),
        Place::Elsewhere { removed: true } => "removed".to_owned(),
        Place::Elsewhere { removed: false } => "not in use".to_owned(),
    }
}

pub(crate) fn one(layer: &LayerStatus) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("{name:9}{value}\n"));
        }
    };
    line("layer", layer.name.to_string());
    line("title", layer.title.clone());
    line("kind", layer.kind.to_string());
    line("state", place(&layer.place));
    line("made", layer.created.strftime("%Y-%m-%d %H:%M UTC").to_string());
    line("by", layer.made_by.clone());
    line("signed", layer.signed_by.map(|key| key.to_string()).unwrap_or_default());
    let release = layer.release.as_ref().map(|release| release.name.to_string());
    line("on", release.unwrap_or_default());
    let (total, alone) = (bytes(layer.cost.total), bytes(layer.cost.alone));
    line("takes", format!("{total}, {alone} of it alone"));
    let names: Vec<_> = layer.deployments.iter().map(ToString::to_string).collect();
    line("in", names.join(", "));
    text
}

pub(crate) fn diff(entries: &[DiffEntry]) -> String {
    let word = |what| match what {
        What::Added => "added",
        What::Replaced => "replaced",
        What::Attributes => "attributes",
        What::Removed => "removed",
        What::Emptied => "emptied",
    };
    if entries.is_empty() {
        return "It changes nothing.\n".to_owned();
    }
    entries.iter().map(|entry| format!("{:11}{}\n", word(entry.what), entry.path)).collect()
}

fn stack(own: &[OwnLayer]) -> String {
    if own.is_empty() {
        return "the release alone".to_owned();
    }
    let name = |own: &OwnLayer| {
        if own.on { own.layer.to_string() } else { format!("({} off)", own.layer) }
    };
    own.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn switched_off(off: &[SwitchedOff]) -> String {
    let line = |off: &SwitchedOff| {
        format!("{} is switched off for the trial: with it {}.\n", off.layer, off.problem)
    };
    off.iter().map(line).collect()
}

pub(crate) fn changed(changed: &Changed) -> String {
    let mut text = switched_off(&changed.switched_off);
    let (before, after) = (stack(&changed.before), stack(&changed.after));
    match (&changed.deployment, changed.dry_run) {
        (_, true) => text.push_str(&format!("The next boot would have {after}, not {before}.\n")),
        (None, false) => text.push_str("It is deleted once no deployment needs it.\n"),
        (Some(deployment), false) => {
            text.push_str(&format!(
                "{deployment} boots next, on trial ({}): {after} over the release.\n",
                plural(changed.tries.into(), "try", "tries")
            ));
            text.push_str("Reboot when it suits you; `varve rollback` takes it back.\n");
        }
    }
    text
}

pub(crate) fn added(added: &Added) -> String {
    let paths = plural(added.paths, "path", "paths");
    let name = added.changed.layer.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut text = format!("{name}: {paths}, {}.\n", bytes(added.bytes));
    for package in &added.packages {
        text.push_str(&format!("{} {}", package.name, package.version));
        match package.scripts_not_run.is_empty() {
            true => text.push_str(": it has no scripts"),
            false => text.push_str(&format!(
                ": its scripts were not run ({})",
                package.scripts_not_run.join(", ")
            )),
        }
        text.push_str(match package.registered {
            true => "; dpkg will know it.\n",
            false => "; this system has no dpkg to tell.\n",
        });
    }
    text + &changed(&added.changed)
}

pub(crate) fn exported(exported: &Exported) -> String {
    let Exported { layer, file, bytes: size, paths, key, new_key } = exported;
    let made = if *new_key { ", which was made now" } else { "" };
    let paths = plural(*paths, "path", "paths");
    format!(
        "{layer}: {paths} in {}, {}.\n\
         Signed with this device's key{made}: {key}\n\
         Whoever takes it needs that key from you by another way: \
         `varve layer import FILE --trust KEY`.\n",
        file.display(),
        bytes(*size)
    )
}

pub(crate) fn imported(imported: &Imported) -> String {
    let name = imported.changed.layer.as_ref().map(ToString::to_string).unwrap_or_default();
    let paths = plural(imported.paths, "path", "paths");
    let (size, key) = (bytes(imported.bytes), imported.key);
    let mut text = format!("{name}: {paths}, {size}, signed by {key}.\n");
    if imported.other_release {
        let release = imported.made_on.as_ref().map(|release| release.name.to_string());
        let release = release.unwrap_or_else(|| "another system".to_owned());
        text.push_str(&format!("It was made on {release}, which is not what boots here.\n"));
    }
    text + &changed(&imported.changed)
}

pub(crate) fn renamed(answer: &Renamed) -> String {
    let word = if answer.dry_run { "would be" } else { "is" };
    format!("{} {word} called {:?}.\n", answer.layer, answer.title)
}

#[cfg(test)]
mod tests;
