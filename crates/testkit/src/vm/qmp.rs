//! qemu's machine protocol (QMP): one JSON object a line, over a socket.
//!
//! Only what a person at the machine could do is here: press a key and hold it, press
//! reset, pull the plug, look at the screen. The protocol is described in qemu's
//! documentation as "QEMU Machine Protocol Specification".

use super::{Error, Result, io_error};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A connection to a machine's monitor.
#[derive(Debug)]
pub struct Monitor {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Monitor {
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let stream = super::console::connect(socket)?;
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .map_err(io_error("set up", socket))?;
        let lines = BufReader::new(stream.try_clone().map_err(io_error("share", socket))?);
        let mut monitor = Self { stream, lines };
        monitor.line()?; // the greeting
        monitor.command("qmp_capabilities", Value::Null)?;
        Ok(monitor)
    }

    /// Runs a QMP command and gives what it returns.
    ///
    /// # Errors
    /// [`Error::Monitor`] with qemu's words.
    pub fn command(&mut self, name: &str, arguments: Value) -> Result<Value> {
        let mut request = json!({ "execute": name });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let text = format!("{request}\n");
        self.stream
            .write_all(text.as_bytes())
            .map_err(io_error("write to", Path::new("the monitor")))?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                let reason = error["desc"].as_str().unwrap_or("no reason given").to_owned();
                return Err(Error::Monitor { command: name.to_owned(), reason });
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
            // An event (a reset, a shutdown): nobody waits for those here.
        }
    }

    /// Presses a key, by qemu's name for it (`esc`, `ret`, `f1`), and lets go after `hold`.
    ///
    /// # Errors
    /// [`Error::Monitor`] when qemu does not know the key.
    pub fn press(&mut self, key: &str, hold: Duration) -> Result<()> {
        let keys = json!([{ "type": "qcode", "data": key }]);
        let hold = u64::try_from(hold.as_millis()).unwrap_or(u64::MAX);
        self.command("send-key", json!({ "keys": keys, "hold-time": hold })).map(|_| ())
    }

    /// Puts a key down or lets it go. A held key does not repeat by itself here: the
    /// keyboard's own repeat is the guest's driver's.
    ///
    /// # Errors
    /// [`Error::Monitor`] when qemu does not know the key.
    pub fn key(&mut self, key: &str, down: bool) -> Result<()> {
        let event = json!({ "type": "key", "data": { "down": down, "key": { "type": "qcode", "data": key } } });
        self.command("input-send-event", json!({ "events": [event] })).map(|_| ())
    }

    /// Presses the reset button.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn reset(&mut self) -> Result<()> {
        self.command("system_reset", Value::Null).map(|_| ())
    }

    /// Presses the power button: the guest is asked to shut down.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn power_button(&mut self) -> Result<()> {
        self.command("system_powerdown", Value::Null).map(|_| ())
    }

    /// Writes what the screen shows as a picture: PNG (qemu 7.1 and later) where the file
    /// is named so, else PPM.
    ///
    /// # Errors
    /// [`Error::Monitor`] when the file cannot be written.
    pub fn screen(&mut self, path: &Path) -> Result<()> {
        let format = if path.extension().is_some_and(|end| end == "png") { "png" } else { "ppm" };
        let arguments = json!({ "filename": path.display().to_string(), "format": format });
        self.command("screendump", arguments).map(|_| ())
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self
            .lines
            .read_line(&mut line)
            .map_err(io_error("read from", Path::new("the monitor")))?;
        if read == 0 {
            return Err(Error::Monitor {
                command: "a command".to_owned(),
                reason: "the machine has ended".to_owned(),
            });
        }
        serde_json::from_str(&line).map_err(|error| Error::Monitor {
            command: "a command".to_owned(),
            reason: error.to_string(),
        })
    }
}
