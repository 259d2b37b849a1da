//! The kernel's command line, as words.
//!
//! ```text
//! root=/dev/vda console=ttyS0 varve.strip=2 varve.menu dyndbg="file a.c +p"
//! ```
//!
//! Words are split at white space; double quotes keep white space together and are
//! dropped, wherever they stand in a word. A word is `key=value` or `key`. Keys are
//! compared as the kernel does it: `-` and `_` are the same. Where a key stands twice,
//! the last one counts. Source: the kernel's `lib/cmdline.c`, `kernel/params.c`.
//!
//! Callers: the boot stage. [`CommandLine::parse`] is pure and takes any bytes.

use std::io;

/// The words of a command line, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommandLine {
    words: Vec<(String, Option<String>)>,
}

impl CommandLine {
    /// Splits the text. Bytes that are not UTF-8 become replacement characters: no
    /// option that this project knows has any.
    pub fn parse(text: &[u8]) -> CommandLine {
        let text = String::from_utf8_lossy(text);
        let mut words = Vec::new();
        let mut word = String::new();
        let (mut quoted, mut begun) = (false, false);
        for character in text.chars().chain([' ']) {
            match character {
                '"' => {
                    quoted = !quoted;
                    begun = true;
                }
                c if c.is_ascii_whitespace() && !quoted => {
                    if begun {
                        words.push(split(&word));
                    }
                    word.clear();
                    begun = false;
                }
                c => {
                    word.push(c);
                    begun = true;
                }
            }
        }
        if begun {
            // A quote that never closes: the rest of the line is one word.
            words.push(split(word.trim_end()));
        }
        CommandLine { words }
    }

    /// Reads `/proc/cmdline`.
    pub fn of_this_boot() -> io::Result<CommandLine> {
        Ok(CommandLine::parse(&std::fs::read("/proc/cmdline")?))
    }

    /// The value of the last `key=value`; `Some("")` for `key=`, `None` for a bare `key`.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.words.iter().rev().find(|(k, _)| same_key(k, key)).and_then(|(_, v)| v.as_deref())
    }

    /// Whether `key` is there, with or without a value.
    pub fn has(&self, key: &str) -> bool {
        self.words.iter().any(|(k, _)| same_key(k, key))
    }
}

fn split(word: &str) -> (String, Option<String>) {
    match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (word.to_owned(), None),
    }
}

fn same_key(a: &str, b: &str) -> bool {
    let fold = |byte: u8| if byte == b'-' { b'_' } else { byte };
    a.bytes().map(fold).eq(b.bytes().map(fold))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_values_and_quotes() {
        let line = CommandLine::parse(
            b"root=/dev/vda  ro \"varve.deployment=a b\" x=\"1 2\"3 varve.menu varve.strip=1 varve.strip=2 y=\n",
        );
        assert_eq!(line.value("root"), Some("/dev/vda"));
        assert!(line.has("ro"));
        assert_eq!(line.value("ro"), None);
        assert_eq!(line.value("varve.deployment"), Some("a b"));
        assert_eq!(line.value("x"), Some("1 23"));
        assert!(line.has("varve.menu"));
        assert_eq!(line.value("varve.strip"), Some("2"), "the last one counts");
        assert_eq!(line.value("y"), Some(""));
        assert!(!line.has("varve"));
    }

    #[test]
    fn hyphen_and_underscore_are_one() {
        let line = CommandLine::parse(b"varve.key_wait=5");
        assert_eq!(line.value("varve.key-wait"), Some("5"));
    }

    #[test]
    fn odd_lines() {
        assert_eq!(CommandLine::parse(b""), CommandLine::default());
        assert_eq!(CommandLine::parse(b" \n\t "), CommandLine::default());
        assert_eq!(CommandLine::parse(b"a=\"b c").value("a"), Some("b c"));
        assert_eq!(CommandLine::parse(b"\"\"").words, [(String::new(), None)]);
        assert_eq!(CommandLine::parse(b"=x").value(""), Some("x"));
        assert!(CommandLine::parse(b"\xff\xfe ok").has("ok"));
    }

    proptest::proptest! {
        /// Any bytes give words; what a word was written as comes back.
        #[test]
        fn any_bytes(text: Vec<u8>, key in "[a-z.]{1,8}", value in "[a-z0-9/ ]{0,8}") {
            CommandLine::parse(&text);
            let line = CommandLine::parse(format!("X {key}=\"{value}\" Y").as_bytes());
            proptest::prop_assert_eq!(line.value(&key), Some(&*value));
        }
    }
}
