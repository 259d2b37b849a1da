//! dpkg's database, as far as a layer takes part in it: pure, on texts.
//!
//! ```text
//! var/lib/dpkg/status          one text for the whole system: a layer that had its own
//!                              would hide the next release's
//! var/lib/dpkg/updates/NNNN    changes to it, which dpkg itself lays over the status
//!                              whenever it reads (dpkg, lib/dpkg/dbmodify.c)
//! ```
//!
//! So a layer brings its packages as one file in `updates/` and says nothing of others.
//! dpkg knows them, whatever release lies below; the first `dpkg` that writes folds them
//! into its status. Format: deb-control(5).

use std::collections::BTreeMap;

/// Where the status is, in a tree.
pub const STATUS: &str = "var/lib/dpkg/status";
/// Where changes to it are.
pub const UPDATES: &str = "var/lib/dpkg/updates";
/// Where each package's lists and scripts are.
pub const INFO: &str = "var/lib/dpkg/info";

/// One paragraph: fields in their order, continuation lines as they stand.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stanza {
    fields: Vec<(String, String)>,
}

impl Stanza {
    /// Reads the first paragraph of a text.
    pub fn parse(text: &str) -> Self {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in text.lines().skip_while(|line| line.trim().is_empty()) {
            if line.trim().is_empty() {
                break;
            }
            if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = fields.last_mut() {
                    value.push('\n');
                    value.push_str(line);
                }
            } else if let Some((name, value)) = line.split_once(':') {
                fields.push((name.to_owned(), value.trim().to_owned()));
            }
        }
        Self { fields }
    }

    /// A field's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Sets a field, behind the first one if it is new.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.fields.iter_mut().find(|(field, _)| field.eq_ignore_ascii_case(name)) {
            Some((_, old)) => *old = value.to_owned(),
            None => {
                let at = self.fields.len().min(1);
                self.fields.insert(at, (name.to_owned(), value.to_owned()));
            }
        }
    }

    /// The paragraph, its last line ended.
    pub fn to_text(&self) -> String {
        self.fields
            .iter()
            .map(|(name, value)| match value.is_empty() || value.starts_with('\n') {
                true => format!("{name}:{value}\n"),
                false => format!("{name}: {value}\n"),
            })
            .collect()
    }

    /// What tells packages apart: name and architecture.
    fn key(&self) -> Option<(String, String)> {
        let architecture = self.get("Architecture").unwrap_or("").to_owned();
        Some((self.get("Package")?.to_owned(), architecture))
    }
}

/// All paragraphs of a status or an update.
pub fn stanzas(text: &str) -> Vec<Stanza> {
    let mut all = Vec::new();
    let mut part = String::new();
    for line in text.lines().chain([""]) {
        if !line.trim().is_empty() {
            part.push_str(line);
            part.push('\n');
        } else if !part.is_empty() {
            all.push(Stanza::parse(&std::mem::take(&mut part)));
        }
    }
    all
}

fn by_package(text: &str) -> BTreeMap<(String, String), Stanza> {
    stanzas(text).into_iter().filter_map(|stanza| Some((stanza.key()?, stanza))).collect()
}

/// A status with changes laid over it, in their order, as dpkg reads them.
pub fn merged(status: &str, updates: &[String]) -> String {
    let mut packages = by_package(status);
    for update in updates {
        packages.extend(by_package(update));
    }
    text_of(packages.values())
}

/// What turns one status into another, as an update; empty when nothing does.
pub fn difference(before: &str, after: &str) -> String {
    let (was, is) = (by_package(before), by_package(after));
    let mut changed: Vec<Stanza> =
        is.iter().filter(|(key, now)| was.get(key) != Some(now)).map(|(_, s)| s.clone()).collect();
    // Purged packages vanish from a status; an update has to say so.
    for (key, gone) in was.iter().filter(|(key, _)| !is.contains_key(*key)) {
        let mut stanza = Stanza::default();
        stanza.set("Package", &key.0);
        stanza.set("Status", "purge ok not-installed");
        if let Some(architecture) = gone.get("Architecture") {
            stanza.fields.push(("Architecture".to_owned(), architecture.to_owned()));
        }
        changed.push(stanza);
    }
    text_of(changed.iter())
}

fn text_of<'a>(stanzas: impl Iterator<Item = &'a Stanza>) -> String {
    stanzas.map(Stanza::to_text).collect::<Vec<_>>().join("\n")
}

/// The paragraph of a package whose files were put into a layer. Its scripts were not
/// run: one that has any is unpacked, not configured.
pub fn unpacked(control: &Stanza, has_scripts: bool) -> Stanza {
    let mut stanza = control.clone();
    let state = if has_scripts { "unpacked" } else { "installed" };
    stanza.set("Status", &format!("install ok {state}"));
    stanza
}

/// How a package's files in `info/` begin: packages of several architectures name theirs.
pub fn info_name(control: &Stanza) -> Option<String> {
    let package = control.get("Package")?;
    let safe = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
            && !text.starts_with('.')
    };
    if !safe(package) {
        return None;
    }
    match (control.get("Multi-Arch"), control.get("Architecture")) {
        (Some("same"), Some(architecture)) if safe(architecture) => {
            Some(format!("{package}:{architecture}"))
        }
        _ => Some(package.to_owned()),
    }
}

/// The name of a layer's file in `updates/`: four digits, all that dpkg takes, away from
/// the low ones that it uses itself.
pub fn update_name(layer: &str, taken: &[String]) -> String {
    let digest = varve_format::Sha256Digest::of(layer.as_bytes()).0;
    let first = 1000 + (u32::from(digest[0]) << 8 | u32::from(digest[1])) % 9000;
    let names = (0..9000).map(|n| (1000 + (first - 1000 + n) % 9000).to_string());
    let mut free = names.filter(|name| !taken.contains(name));
    free.next().unwrap_or_else(|| first.to_string())
}

/// Whether a name in `updates/` is one of an update.
pub fn is_update(name: &str) -> bool {
    name.len() == 4 && name.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Package: a\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n\
        Description: one\n two\n .\n three\n\nPackage: b\nStatus: install ok installed\n\
        Architecture: amd64\nVersion: 1\n\n";

    #[test]
    fn a_paragraph_comes_back() {
        let all = stanzas(STATUS);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].get("description"), Some("one\n two\n .\n three"));
        assert_eq!(text_of(all.iter()), STATUS.trim_end().to_owned() + "\n");
        let conffiles = "Package: c\nConffiles:\n /etc/c 123\n";
        assert_eq!(Stanza::parse(conffiles).to_text(), conffiles);
    }

    #[test]
    fn a_difference_laid_over_gives_the_other() {
        let after = "Package: a\nStatus: install ok installed\nArchitecture: all\nVersion: 2\n\n\
            Package: c\nStatus: install ok installed\nArchitecture: amd64\nVersion: 9\n";
        let update = difference(STATUS, after);
        assert!(update.contains("Package: b\nStatus: purge ok not-installed\n"), "{update}");
        let again = merged(STATUS, &[update]);
        assert_eq!(difference(after, &again).matches("Package:").count(), 1, "b, not installed");
        assert!(again.contains("Version: 9") && again.contains("Version: 2"));
        assert_eq!(difference(STATUS, STATUS), "");
    }

    #[test]
    fn names_are_of_dpkgs_form_and_free() {
        let first = update_name("games", &[]);
        assert!(is_update(&first) && first.as_str() >= "1000");
        assert_ne!(update_name("games", std::slice::from_ref(&first)), first);
        let same = Stanza::parse("Package: libx\nArchitecture: amd64\nMulti-Arch: same\n");
        assert_eq!(info_name(&same).as_deref(), Some("libx:amd64"));
        assert_eq!(info_name(&Stanza::parse("Package: ../x\n")), None);
    }
}
