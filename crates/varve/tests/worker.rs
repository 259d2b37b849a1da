//! The program as a worker, seen from outside: what it has given up before it reads a byte
//! that somebody else wrote, and how little harm it does when that byte is hostile.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The address space of a worker, in bytes.
const SPACE: u64 = 256 << 20;

struct Worker {
    process: Child,
    stream: UnixStream,
    /// What the kernel lacks, by its own word.
    lacks: String,
}

impl Worker {
    fn start() -> Self {
        Self::of("decode")
    }

    fn of(task: &str) -> Self {
        let (here, there) = UnixStream::pair().unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_varve"))
            .args([varve_fetch::worker::ARGUMENT, task, &SPACE.to_string()])
            .env_clear()
            .stdin(OwnedFd::from(there))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        here.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut worker = Self { process, stream: here, lacks: String::new() };
        let (tag, text) = worker.receive().expect("its first word");
        worker.lacks = String::from_utf8(text).unwrap();
        assert_eq!(tag, b'r', "{}", worker.lacks);
        worker
    }

    fn send(&mut self, tag: u8, body: &[u8]) {
        self.stream.write_all(&[tag]).unwrap();
        self.stream.write_all(&(body.len() as u64).to_le_bytes()).unwrap();
        self.stream.write_all(body).unwrap();
    }

    fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).ok()?;
        let mut body = vec![0; u64::from_le_bytes(head[1..].try_into().unwrap()) as usize];
        self.stream.read_exact(&mut body).ok()?;
        Some((head[0], body))
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.process.id())
    }

    /// A field of /proc/PID/status.
    fn status(&self, key: &str) -> String {
        let text = fs::read_to_string(self.proc("status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What each has given up; these are the namespaces of its own.
fn has_given_up(worker: &Worker, spaces: &[&str]) {
    if rustix::process::geteuid().is_root() {
        let nobody = "65534 65534 65534 65534";
        assert_eq!((worker.status("Uid"), worker.status("Gid")), (nobody.into(), nobody.into()));
        assert_eq!(worker.status("Groups"), "");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(worker.status(set), "0000000000000000", "{set}");
        }
        if !worker.lacks.contains("namespaces") {
            for space in spaces {
                let theirs = fs::read_link(worker.proc(space)).unwrap();
                assert_ne!(theirs, fs::read_link(format!("/proc/self/{space}")).unwrap());
            }
        }
        let open: Vec<_> = fs::read_dir(worker.proc("fd")).unwrap().flatten().collect();
        let targets = open.iter().map(|fd| fs::read_link(fd.path()).unwrap());
        for target in targets {
            let target = target.to_string_lossy().into_owned();
            assert!(target.starts_with("socket:") || target == "/dev/null", "{target}");
        }
        let limits = fs::read_to_string(worker.proc("limits")).unwrap();
        for limit in ["Max core file size", "Max file size"] {
            let line = limits.lines().find(|line| line.starts_with(limit)).unwrap();
            assert_eq!(line[limit.len()..].split_whitespace().next(), Some("0"), "{line}");
        }
    } else {
        eprintln!("not looked at: whose it is, its namespaces and descriptors; run this as root");
    }
    assert_eq!(worker.status("NoNewPrivs"), "1");
    match worker.lacks.contains("seccomp") {
        true => eprintln!("not looked at: this kernel has no seccomp"),
        false => assert_eq!(worker.status("Seccomp"), "2"),
    }
}

#[test]
fn a_worker_has_nothing_but_its_socket() {
    let mut worker = Worker::start();
    has_given_up(&worker, &["ns/net", "ns/ipc", "ns/uts"]);
    // And it works.
    let stored = zstd::bulk::compress(b"a frame", 3).unwrap();
    worker.send(b'f', &[&7_u64.to_le_bytes()[..], &stored].concat());
    assert_eq!(worker.receive(), Some((b'd', b"a frame".to_vec())));
}

#[test]
fn hostile_bytes_end_in_a_refusal_or_in_the_worker() {
    // A frame that is none, a frame that is larger than it may be, a delta that is none.
    let bomb = zstd::bulk::compress(&vec![0; 16 << 20], 3).unwrap();
    for (tag, body) in [
        (b'f', [&7_u64.to_le_bytes()[..], b"no frame"].concat()),
        (b'f', [&7_u64.to_le_bytes()[..], &bomb].concat()),
        (b'o', [&4_u64.to_le_bytes()[..], b"none", b"no manifest"].concat()),
        (b'o', u64::MAX.to_le_bytes().to_vec()),
        (b'a', vec![0; 8]),
    ] {
        let mut worker = Worker::start();
        worker.send(tag, &body);
        let (answer, text) = worker.receive().unwrap();
        assert_eq!(answer, b'x', "{}", String::from_utf8_lossy(&text));
        // It goes on.
        let stored = zstd::bulk::compress(b"a frame", 3).unwrap();
        worker.send(b'f', &[&7_u64.to_le_bytes()[..], &stored].concat());
        assert_eq!(worker.receive(), Some((b'd', b"a frame".to_vec())));
    }
    // More memory than it may take: it ends, and nothing else does.
    let mut worker = Worker::start();
    worker.send(b't', &[&u64::MAX.to_le_bytes()[..], &endless()].concat());
    assert!(worker.receive().is_none_or(|(answer, _)| answer == b'x'));
    // What is no message at all.
    let mut worker = Worker::start();
    worker.send(b'?', b"");
    assert_eq!(worker.receive(), None);
    assert!(!worker.process.wait().unwrap().success());
}

/// Frames that decode to 512 MiB of zeros, one behind the other.
fn endless() -> Vec<u8> {
    zstd::bulk::compress(&vec![0; 16 << 20], 1).unwrap().repeat(32)
}

#[test]
fn a_worker_ends_with_its_socket() {
    let mut worker = Worker::start();
    worker.stream.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(worker.process.wait().unwrap().success());
}

#[test]
fn who_asks_servers_has_the_network_and_no_more() {
    let mut worker = Worker::of("web");
    has_given_up(&worker, &["ns/ipc", "ns/uts"]);
    // A server that is a file is none: it ends before it asks.
    let told = br#"{"url": "file:///etc/passwd", "options": {"connect": {"secs": 1, "nanos": 0},
        "stall": {"secs": 1, "nanos": 0}, "proxies": {"http": null, "https": null, "direct": []},
        "certificates": []}}"#;
    worker.send(b'u', told);
    assert_eq!(worker.receive(), None);
    assert!(!worker.process.wait().unwrap().success());
}
