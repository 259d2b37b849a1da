//! The guest's serial line, read as a person would: wait for a text, type, read on.
//!
//! A thread copies every byte into a buffer and into `console.log`. A *mark* remembers
//! how far the test has read, so that a text is found once and an old one is not taken
//! for a new one:
//!
//! ```text
//!   Loading… login: root (automatic login)\nroot@d:~# ........
//!   └──────────── read by the test ───────┘└ still to read ──┘
//!                                          ^mark
//! ```

use super::{Error, Result, io_error};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Bytes of the console that an error shows.
const TAIL: usize = 3000;

/// What a command in the guest gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit code.
    pub code: i32,
    /// Its standard output and error, mixed, with `\n` line ends and without the last one.
    pub text: String,
}

impl Output {
    /// Whether it ended with 0.
    pub fn success(&self) -> bool {
        self.code == 0
    }
}

#[derive(Debug, Default)]
struct Shared {
    bytes: Mutex<Buffer>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    closed: bool,
}

/// The serial line of a machine.
#[derive(Debug)]
pub struct Console {
    stream: UnixStream,
    shared: Arc<Shared>,
    mark: usize,
    commands: u32,
}

impl Console {
    /// Connects to qemu's socket, which may take a moment to appear.
    pub(super) fn connect(socket: &Path, log: &Path, echo: bool) -> Result<Self> {
        let stream = connect(socket)?;
        let mut reader = stream.try_clone().map_err(io_error("share", socket))?;
        let mut log = super::disk::append(log)?;
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        // Ends by itself when qemu closes its end.
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                let length = match reader.read(&mut chunk) {
                    Ok(0) => break,
                    Ok(length) => length,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(_) => break,
                };
                // A full disk must not stop the test's reading.
                let _ = log.write_all(&chunk[..length]);
                if echo {
                    let _ = std::io::stderr().write_all(&chunk[..length]);
                }
                lock(&writer.bytes).bytes.extend_from_slice(&chunk[..length]);
                writer.grown.notify_all();
            }
            lock(&writer.bytes).closed = true;
            writer.grown.notify_all();
        });
        Ok(Self { stream, shared, mark: 0, commands: 0 })
    }

    /// Sends bytes as if typed.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).map_err(io_error("write to", Path::new("the serial line")))
    }

    /// Sends a line.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn send_line(&mut self, line: &str) -> Result<()> {
        self.send(line.as_bytes())?;
        self.send(b"\n")
    }

    /// Waits until `text` appears after what was read so far; gives what came before it.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the console's tail.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<String> {
        self.expect_any(&[text], limit).map(|(_, before)| before)
    }

    /// As [`Console::expect`], and fails at once when one of `unwanted` comes first.
    ///
    /// # Errors
    /// [`Error::Unwanted`], [`Error::Timeout`].
    pub fn expect_not(&mut self, text: &str, unwanted: &[&str], limit: Duration) -> Result<String> {
        let mut all = vec![text];
        all.extend_from_slice(unwanted);
        match self.expect_any(&all, limit)? {
            (0, before) => Ok(before),
            (index, _) => Err(Error::Unwanted {
                what: text.to_owned(),
                seen: all[index].to_owned(),
                tail: self.tail(),
            }),
        }
    }

    /// Waits for the first of several texts; gives its index and what came before it.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the console's tail.
    pub fn expect_any(&mut self, texts: &[&str], limit: Duration) -> Result<(usize, String)> {
        let end = Instant::now() + limit;
        let shared = Arc::clone(&self.shared);
        let mut buffer = lock(&shared.bytes);
        loop {
            let unread = &buffer.bytes[self.mark..];
            let found = texts
                .iter()
                .enumerate()
                .filter_map(|(index, text)| Some((find(unread, text.as_bytes())?, index)))
                .min();
            if let Some((at, index)) = found {
                let before = String::from_utf8_lossy(&unread[..at]).into_owned();
                self.mark += at + texts[index].len();
                return Ok((index, before));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || buffer.closed {
                drop(buffer);
                return Err(self.timeout(&texts.join("|"), limit));
            }
            buffer = match shared.grown.wait_timeout(buffer, left) {
                Ok((buffer, _)) => buffer,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Whether `text` has appeared since the machine was started, read or not.
    pub fn ever_saw(&self, text: &str) -> bool {
        find(&lock(&self.shared.bytes).bytes, text.as_bytes()).is_some()
    }

    /// How many bytes the console has printed: a place to look back from.
    pub fn position(&self) -> usize {
        lock(&self.shared.bytes).bytes.len()
    }

    /// What the console has printed since [`Console::position`] was `from`.
    pub fn since(&self, from: usize) -> String {
        String::from_utf8_lossy(&lock(&self.shared.bytes).bytes[from..]).into_owned()
    }

    /// Forgets what was printed so far, so that the next wait finds only new text.
    pub fn skip(&mut self) {
        self.mark = self.position();
    }

    /// Waits for root's automatic login and turns the shell into one that a program can
    /// talk to: no echo, no prompt, no line editing.
    pub(super) fn login(&mut self, limit: Duration) -> Result<()> {
        self.expect("(automatic login)", limit)?;
        self.shell(limit)
    }

    /// The second half of it, where the login was seen.
    pub(super) fn shell(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        for attempt in 0.. {
            // The sum is not in what the terminal echoes, so the shell itself has answered.
            self.send_line(&format!(
                " stty -echo -onlcr cols 500; PS1= PS2=; exec bash --noediting --norc -c 'dmesg -n 1; PS1= exec bash --noediting --norc'\n echo ready-$(({attempt}+1000))"
            ))?;
            match self.expect(&format!("ready-{}", attempt + 1000), Duration::from_secs(5)) {
                Ok(_) => break,
                Err(_) if Instant::now() < end => {}
                Err(_) => return Err(self.timeout("a shell that answers", limit)),
            }
        }
        self.run("PS1= PS2=; stty -echo -onlcr", Duration::from_secs(30)).map(|_| ())
    }

    /// Runs a command line as root, after [`super::Machine::login`].
    ///
    /// What it prints is held in a file and shown when it has ended, so that messages of
    /// the kernel in between do not matter.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it does not end in time. A code other than 0 is no error.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output> {
        self.commands += 1;
        let id = self.commands;
        let file = "/run/console-output";
        // The marks are put together by printf, so that an echo of this line is not one.
        self.skip();
        self.send_line(&format!(
            " {{ {command}\n }} >{file} 2>&1 </dev/null; c=$?; printf '\\n%s-%s\\n' begin {id}; cat {file}; printf '\\n%s-%s-%s.\\n' end {id} $c"
        ))?;
        let end = Instant::now() + limit;
        self.expect(&format!("begin-{id}\n"), limit)
            .map_err(|error| with_command(error, command))?;
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_secs(20));
        let text = self.expect(&format!("\nend-{id}-"), left)?;
        let code = self.expect(".\n", Duration::from_secs(20))?;
        let text = text.trim_end_matches('\n').to_owned();
        Ok(Output { code: code.trim().parse().unwrap_or(-1), text })
    }

    /// The console's last lines.
    pub fn tail(&self) -> String {
        let buffer = lock(&self.shared.bytes);
        let start = buffer.bytes.len().saturating_sub(TAIL);
        String::from_utf8_lossy(&buffer.bytes[start..]).replace('\r', "")
    }

    pub(super) fn timeout(&self, what: &str, limit: Duration) -> Error {
        Error::Timeout { what: what.to_owned(), seconds: limit.as_secs(), tail: self.tail() }
    }
}

fn with_command(error: Error, command: &str) -> Error {
    match error {
        Error::Timeout { seconds, tail, .. } => {
            Error::Timeout { what: format!("the end of `{command}`"), seconds, tail }
        }
        other => other,
    }
}

/// Connects to a socket that a program which was just started will make.
pub(super) fn connect(socket: &Path) -> Result<UnixStream> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            Err(source) => {
                return Err(Error::Io { operation: "connect to", path: socket.to_owned(), source });
            }
        }
    }
}

/// A panic in another thread of the test must not hide what the console said.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    if needle.is_empty() {
        return Some(0);
    }
    let first = needle[0];
    let mut from = 0;
    while let Some(at) = haystack.get(from..)?.iter().position(|byte| *byte == first) {
        if haystack[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn pair() -> (Console, UnixStream, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let console = Console::connect(&socket, &folder.path().join("log"), false).unwrap();
        (console, listener.accept().unwrap().0, folder)
    }

    #[test]
    fn a_text_is_found_once_and_in_order() {
        let (mut console, mut guest, folder) = pair();
        guest.write_all(b"one two ").unwrap();
        guest.write_all(b"one three").unwrap();
        let limit = Duration::from_secs(5);
        assert_eq!(console.expect("two", limit).unwrap(), "one ");
        assert_eq!(console.expect("three", limit).unwrap(), " one ");
        assert!(matches!(
            console.expect("one", Duration::from_millis(50)),
            Err(Error::Timeout { .. })
        ));
        assert!(console.ever_saw("one two"));
        assert_eq!(std::fs::read(folder.path().join("log")).unwrap(), b"one two one three");
    }

    #[test]
    fn what_is_not_wanted_ends_the_wait_at_once() {
        let (mut console, mut guest, _folder) = pair();
        guest.write_all(b"Kernel panic - not syncing").unwrap();
        let error =
            console.expect_not("login:", &["Kernel panic"], Duration::from_secs(60)).unwrap_err();
        assert!(error.to_string().contains("not syncing"), "{error}");
    }

    #[test]
    fn a_machine_that_ends_ends_the_wait() {
        let (mut console, guest, _folder) = pair();
        let begin = Instant::now();
        drop(guest);
        assert!(console.expect("login:", Duration::from_secs(60)).is_err());
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
