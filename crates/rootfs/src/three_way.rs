//! Three versions of one file made into one: the release's as it was, the user's, the
//! release's as it is. Pure; what cannot be merged cleanly is for people.
//!
//! Lists of accounts are merged by account, not by line: a user added here and a system
//! account added by the release both go to the end of the same file, which every merge by
//! lines calls a conflict.

use std::collections::{HashMap, HashSet};

/// The longest file that is merged as text, in bytes.
pub(crate) const MAX_MERGED: u64 = 1 << 20;

/// Files of `/etc` whose lines begin with the name of an account, and whether the third
/// field is a number that no two names may share (passwd(5), group(5)).
const ACCOUNTS: [(&[u8], bool); 6] = [
    (b"etc/passwd", true),
    (b"etc/group", true),
    (b"etc/shadow", false),
    (b"etc/gshadow", false),
    (b"etc/subuid", false),
    (b"etc/subgid", false),
];

/// Merges what `ours` changed over `base` into `theirs`. `path` is that of the file in
/// the tree. None when it is not text, or both changed the same place.
pub fn merge(path: &[u8], base: &[u8], ours: &[u8], theirs: &[u8]) -> Option<Vec<u8>> {
    let is_text = |bytes: &[u8]| std::str::from_utf8(bytes).is_ok() && !bytes.contains(&0);
    if ![base, ours, theirs].into_iter().all(is_text) {
        return None;
    }
    match ACCOUNTS.iter().find(|(name, _)| *name == path) {
        Some((_, has_number)) => merge_accounts(base, ours, theirs, *has_number),
        None => diffy::merge_bytes(base, ours, theirs).ok(),
    }
}

/// Each account's line, by name; none when a name stands twice.
fn accounts(text: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut seen = HashSet::new();
    let lines = text.split(|&b| b == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let name = line.split(|&b| b == b':').next().unwrap_or(line);
            seen.insert(name).then_some((name, line))
        })
        .collect()
}

fn merge_accounts(base: &[u8], ours: &[u8], theirs: &[u8], has_number: bool) -> Option<Vec<u8>> {
    let (base, ours, theirs) = (accounts(base)?, accounts(ours)?, accounts(theirs)?);
    let by_name = |list: &[(&[u8], &[u8])]| -> HashMap<Vec<u8>, Vec<u8>> {
        list.iter().map(|(name, line)| (name.to_vec(), line.to_vec())).collect()
    };
    let (was, here, there) = (by_name(&base), by_name(&ours), by_name(&theirs));
    let mut merged: Vec<&[u8]> = Vec::new();
    for (name, line) in &ours {
        match (was.get(*name), there.get(*name)) {
            // The release changed or removed it, the user did not touch it.
            (Some(old), new) if old == line => merged.extend(new.map(Vec::as_slice)),
            (Some(old), Some(new)) if old != new && new != line => return None,
            (None, Some(new)) if new != line => return None,
            _ => merged.push(line),
        }
    }
    let added =
        theirs.iter().filter(|(name, _)| !here.contains_key(*name) && !was.contains_key(*name));
    merged.extend(added.map(|(_, line)| *line));
    if has_number && !numbers_are_unique(&merged, &[&base, &ours, &theirs]) {
        return None;
    }
    let mut text = merged.join(&b'\n');
    text.push(b'\n');
    Some(text)
}

/// Whether no two names share a number that did not share it in one of the inputs.
fn numbers_are_unique(merged: &[&[u8]], inputs: &[&[(&[u8], &[u8])]]) -> bool {
    fn number(line: &[u8]) -> Option<&[u8]> {
        line.split(|&b| b == b':').nth(2)
    }
    let repeated = |lines: &mut dyn Iterator<Item = &[u8]>| {
        let mut seen = HashSet::new();
        lines.filter_map(|line| number(line)).filter(|n| !seen.insert(n.to_vec())).count()
    };
    let before = inputs.iter().map(|input| repeated(&mut input.iter().map(|(_, line)| *line)));
    repeated(&mut merged.iter().copied()) <= before.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str, versions: [&str; 3]) -> Option<String> {
        let [base, ours, theirs] = versions.map(str::as_bytes);
        merge(path.as_bytes(), base, ours, theirs).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn changes_in_different_places_are_both_kept() {
        let merged = text("etc/f", ["a\nb\nc\nd\ne\n", "A\nb\nc\nd\ne\n", "a\nb\nc\nd\nE\n"]);
        assert_eq!(merged.as_deref(), Some("A\nb\nc\nd\nE\n"));
    }

    #[test]
    fn the_same_place_or_no_text_is_a_conflict() {
        assert_eq!(text("etc/f", ["a\n", "b\n", "c\n"]), None);
        assert_eq!(merge(b"etc/f", b"\0a", b"\0b", b"\0a"), None);
        assert_eq!(merge(b"etc/f", b"a", b"\xff", b"a"), None);
    }

    #[test]
    fn accounts_added_on_both_sides_are_kept() {
        let base = "root:x:0:0::/root:/bin/sh\nold:x:7:7:::\n";
        let ours = format!("{base}ann:x:1000:1000::/home/ann:/bin/sh\n");
        let theirs = "root:x:0:0::/root:/bin/bash\n_new:x:990:990:::\n";
        assert_eq!(
            text("etc/passwd", [base, &ours, theirs]).as_deref(),
            Some(
                "root:x:0:0::/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/sh\n_new:x:990:990:::\n"
            )
        );
    }

    #[test]
    fn accounts_that_collide_are_a_conflict() {
        let base = "root:x:0:0::/root:/bin/sh\n";
        let ours = format!("{base}ann:x:1000:1000:::\n");
        let number = format!("{base}bob:x:1000:1000:::\n");
        assert_eq!(text("etc/passwd", [base, &ours, &number]), None, "one number, two names");
        let name = format!("{base}ann:x:1001:1001:::\n");
        assert_eq!(text("etc/passwd", [base, &ours, &name]), None, "one name, two accounts");
        let locked = "root:!:1::::::\n";
        assert_eq!(
            text("etc/shadow", ["root:*:1::::::\n", "root:$y$:2::::::\n", locked]),
            None,
            "both changed one password"
        );
    }

    #[test]
    fn what_the_user_removed_stays_removed() {
        let merged = text("etc/group", ["a:x:1:\nb:x:2:\n", "a:x:1:ann\n", "a:x:1:\nb:x:2:\n"]);
        assert_eq!(merged.as_deref(), Some("a:x:1:ann\n"));
    }
}
