//! What happened to this device, one line each, appended and never changed.
//!
//! ```text
//! 2026-11-23T14:41:56Z upgrade release=debian-13.2 deployment=debian-13.2 fetched=79012345
//! 2026-11-23T14:47:03Z roll-back deployment=debian-13.2 reason=the\x20check\x20"ssh"\x20failed
//! ```
//!
//! A time, a word, then `key=value`, separated by single blanks; in values a backslash
//! starts an escape (`\\`, `\n`, `\xHH`; blanks, control characters and `=` never stand
//! as they are). The time is the device's clock, which may be wrong: the order of the
//! lines is what counts. A line that a power cut tore, or that a later version wrote
//! in another way, is shown as it stands and spoils no other. What tells of an act is
//! announced before it: see `announce`.

use std::fmt;

use jiff::Timestamp;
use varve_sys::{Dir, Result, durable};

/// The file's name in the state root.
pub const FILE: &str = "history";
/// The longest history that is read, in bytes; of a longer one the end is read.
pub const MAX_READ: u64 = 16 << 20;
/// The longest value that is written, in bytes: output of a command is cut to this.
pub const MAX_VALUE: usize = 4096;

/// What kind of thing happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Event {
    /// The device was made.
    Init,
    /// A release was staged and promoted.
    Upgrade,
    /// An upgrade did not come to its end.
    UpgradeFailed,
    /// A delta was not used, or did not make all that it should: packs did the rest.
    DeltaLeft,
    /// The booted deployment was found good.
    Confirm,
    /// A health check failed.
    CheckFailed,
    /// The previous deployment was made the latest again.
    RollBack,
    /// The boot stage booted another deployment than the latest.
    FallBack,
    /// A try was given back at shutdown.
    Refund,
    /// Layers were merged.
    Merge,
    /// What nothing needs was deleted.
    Collect,
    /// A deployment was pinned or unpinned.
    Pin,
    /// The own layers were changed.
    Layers,
    /// What the disk had damaged in a deployment was written anew.
    Repair,
    /// Layers were taken off: for the next boot, or for good.
    Strip,
    /// The search for a bad layer began, or learnt something.
    Search,
    /// The running system shows another deployment's files.
    Live,
}

const WORDS: [(Event, &str); 17] = [
    (Event::Init, "init"),
    (Event::Upgrade, "upgrade"),
    (Event::UpgradeFailed, "upgrade-failed"),
    (Event::DeltaLeft, "delta-left"),
    (Event::Confirm, "confirm"),
    (Event::CheckFailed, "check-failed"),
    (Event::RollBack, "roll-back"),
    (Event::FallBack, "fall-back"),
    (Event::Refund, "refund"),
    (Event::Merge, "merge"),
    (Event::Collect, "collect"),
    (Event::Pin, "pin"),
    (Event::Layers, "layers"),
    (Event::Repair, "repair"),
    (Event::Strip, "strip"),
    (Event::Search, "search"),
    (Event::Live, "live"),
];

impl Event {
    /// The word in the file.
    pub fn word(self) -> &'static str {
        WORDS.iter().find(|(event, _)| *event == self).map_or("", |(_, word)| word)
    }

    fn from_word(word: &str) -> Option<Self> {
        WORDS.iter().find(|(_, other)| *other == word).map(|(event, _)| *event)
    }
}

/// One line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// When, by the device's clock.
    pub time: Timestamp,
    /// What; none for a word of a later version.
    pub event: Option<Event>,
    /// The word as it stands.
    pub word: String,
    /// Details by key, in the order of the line.
    pub fields: Vec<(String, String)>,
}

/// What a line is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Line {
    /// As written by this program.
    Record(Record),
    /// Torn, or in another form.
    Other(String),
}

impl Record {
    /// A record without details.
    pub fn new(time: Timestamp, event: Event) -> Self {
        let word = event.word().to_owned();
        Self { time, event: Some(event), word, fields: Vec::new() }
    }

    /// With one more detail.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.add(key, value);
        self
    }

    /// Adds one more detail.
    pub fn add(&mut self, key: &str, value: impl fmt::Display) {
        self.fields.push((key.to_owned(), value.to_string()));
    }

    /// A detail by key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.fields.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The line, without its newline.
    pub fn to_line(&self) -> String {
        let mut line = format!("{:.0} {}", self.time, self.word);
        for (key, value) in &self.fields {
            line.push(' ');
            line.push_str(key);
            line.push('=');
            escape(&mut line, value);
        }
        line
    }

    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.split(' ');
        let time = parts.next()?.parse().ok()?;
        let word = parts.next().filter(|word| !word.is_empty())?.to_owned();
        let mut fields = Vec::new();
        for part in parts {
            let (key, value) = part.split_once('=')?;
            fields.push((key.to_owned(), unescape(value)?));
        }
        Some(Self { time, event: Event::from_word(&word), word, fields })
    }
}

/// Appends a record, durably.
pub fn append(state_root: &Dir, record: &Record) -> Result<()> {
    durable::append_line(state_root, FILE, &record.to_line())
}

/// Reads the history, oldest first; of a very long one the last [`MAX_READ`] bytes.
pub fn read(state_root: &Dir) -> Result<Vec<Line>> {
    use std::io::{Read, Seek, SeekFrom};
    let Some(stat) = state_root.stat_opt(FILE)? else { return Ok(Vec::new()) };
    let fail = |error| varve_sys::SysError::new("read", state_root.path().join(FILE), error);
    let mut file = state_root.open_file(FILE)?;
    let skip = stat.size.saturating_sub(MAX_READ);
    file.seek(SeekFrom::Start(skip)).map_err(fail)?;
    let mut bytes = Vec::new();
    file.take(MAX_READ).read_to_end(&mut bytes).map_err(fail)?;
    let mut lines = parse(&bytes);
    if skip > 0 && !lines.is_empty() {
        lines.remove(0);
    }
    Ok(lines)
}

/// Whether this line stands whole in the history, at or behind byte `from`.
pub(crate) fn has_line(state_root: &Dir, from: u64, line: &str) -> Result<bool> {
    use std::io::{Read, Seek, SeekFrom};
    if state_root.stat_opt(FILE)?.is_none_or(|stat| stat.size <= from) {
        return Ok(false);
    }
    let fail = |error| varve_sys::SysError::new("read", state_root.path().join(FILE), error);
    let mut file = state_root.open_file(FILE)?;
    file.seek(SeekFrom::Start(from)).map_err(fail)?;
    let mut bytes = Vec::new();
    file.take(MAX_READ).read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes.split(|&byte| byte == b'\n').any(|other| other == line.as_bytes()))
}

/// Reads the text of a history.
pub fn parse(bytes: &[u8]) -> Vec<Line> {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| match Record::parse(line) {
            Some(record) => Line::Record(record),
            None => Line::Other(line.to_owned()),
        })
        .collect()
}

fn escape(line: &mut String, value: &str) {
    use fmt::Write;
    let mut written = 0;
    for c in value.chars() {
        if written >= MAX_VALUE {
            line.push('…');
            break;
        }
        written += c.len_utf8();
        match c {
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            ' ' => line.push_str("\\x20"),
            c if c.is_control() || c.is_whitespace() => {
                let mut utf8 = [0; 4];
                for byte in c.encode_utf8(&mut utf8).bytes() {
                    let _ = write!(line, "\\x{byte:02x}");
                }
            }
            c => line.push(c),
        }
    }
}

fn unescape(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next()? {
            b'\\' => b'\\',
            b'n' => b'\n',
            b'x' => {
                let mut digit = || (rest.next()? as char).to_digit(16);
                (digit()? << 4 | digit()?) as u8
            }
            _ => return None,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn lines_are_appended_and_torn_ones_spoil_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let dir = Dir::open(folder.path()).unwrap();
        assert_eq!(read(&dir).unwrap(), []);
        let first = Record::new(at(1_760_000_000), Event::Init).with("release", "debian-13");
        append(&dir, &first).unwrap();
        // What a power cut leaves of a line, and the next append.
        let torn = dir.read(FILE, 1000).unwrap();
        let torn = [&torn[..], b"2026-01-01T00:00:00Z upgr"].concat();
        durable::replace_file(&dir, FILE, &torn, 0o644).unwrap();
        let reason = "the check \"ssh\" failed:\n  x=1\t\\ é\u{a0}";
        let second = Record::new(at(0), Event::RollBack).with("reason", reason).with("tries", 3);
        append(&dir, &second).unwrap();
        let lines = read(&dir).unwrap();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0], Line::Record(first));
        assert_eq!(lines[1], Line::Record(Record::parse("2026-01-01T00:00:00Z upgr").unwrap()));
        assert_eq!(lines[2], Line::Record(second.clone()));
        let text = String::from_utf8(dir.read(FILE, 4000).unwrap()).unwrap();
        insta::assert_snapshot!(text);
        assert_eq!(second.get("reason"), Some(reason));
    }

    #[test]
    fn every_event_has_a_word_of_its_own() {
        for (event, word) in WORDS {
            assert_eq!((event.word(), Event::from_word(word)), (word, Some(event)));
        }
        let other = "2030-01-01T00:00:00Z moved-to-mars deployment=x";
        let Line::Record(record) = &parse(other.as_bytes())[0] else { panic!("it is a record") };
        assert_eq!((record.event, record.word.as_str()), (None, "moved-to-mars"));
    }

    proptest! {
        #[test]
        fn any_value_comes_back_in_one_line(value in "\\PC{0,80}|(.|\n){0,40}") {
            let record = Record::new(at(5), Event::Merge).with("a", &value).with("b", 1);
            let line = record.to_line();
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(parse(line.as_bytes()), [Line::Record(record)]);
        }

        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
        }
    }
}
