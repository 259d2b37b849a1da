//! A real server asked by a process without rights: by name, over TLS, by HTTP/2.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]

use std::sync::Arc;

use rustix::process::{Pid, Signal};
use varve_fetch::{HttpOptions, HttpTransport, Patience, Sources, Transport, Workers};
use varve_format::Sha256Digest;
use varve_sys::task::Cancel;
use varve_testkit::nginx::{AUTHORITY, Nginx};

const LENGTH: usize = 4 << 20;

fn file() -> Vec<u8> {
    (0..LENGTH as u64 / 8)
        .flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
        .collect()
}

/// A folder with a file, a server of it, and sources that ask it by a worker.
fn served() -> Option<(tempfile::TempDir, Nginx, Sources)> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), file()).unwrap();
    let Some(nginx) = Nginx::start(folder.path(), "") else {
        eprintln!("not run: nginx is not installed");
        return None;
    };
    let options = HttpOptions { certificates: AUTHORITY.to_vec(), ..HttpOptions::default() };
    let workers = Workers::of_program(env!("CARGO_BIN_EXE_varve"));
    let transport = HttpTransport::new(&nginx.url(), &options, &workers).unwrap();
    let sources =
        Sources::new(vec![Arc::new(transport) as Arc<dyn Transport>], Patience::default());
    Some((folder, nginx, sources))
}

fn fetch(sources: &Sources) {
    let bytes = file();
    let got = sources
        .fetch_exact("file", LENGTH as u64, Sha256Digest::of(&bytes), &Cancel::new())
        .unwrap();
    assert!(got == bytes);
}

/// The workers that this process started.
fn children() -> Vec<Pid> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let own = std::process::id().to_string();
    numbers
        .filter(|number| {
            let status = std::fs::read_to_string(format!("/proc/{number}/status"));
            let status = status.unwrap_or_default();
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
            let arguments = std::fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
            parent.is_some_and(|parent| parent.trim() == own)
                && arguments.split(|&byte| byte == 0).any(|word| word == b"--worker")
        })
        .filter_map(Pid::from_raw)
        .collect()
}

#[test]
fn a_process_without_rights_asks_a_server() {
    let Some((_folder, nginx, sources)) = served() else { return };
    assert!(children().is_empty(), "nothing is started before it is needed");
    fetch(&sources);
    // Ranges far apart, in one request.
    let (cancel, bytes) = (Cancel::new(), file());
    let ranges: Vec<_> = (0..10_u64).map(|n| n * 400_000 + 7..n * 400_000 + 100_000 + n).collect();
    let mut reader = sources.reader("file", &cancel);
    reader.expect(ranges.clone());
    for range in ranges {
        let mut part = Vec::new();
        reader.read(range.clone(), range.end, &mut part).unwrap();
        assert!(part == bytes[range.start as usize..range.end as usize]);
    }
    let mut log = String::new();
    for _ in 0..100 {
        // It is written a moment after the answer.
        log = nginx.read("access.log");
        if log.lines().count() == 2 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let [whole, ranges] = log.lines().collect::<Vec<_>>()[..] else {
        panic!("two requests: {log}")
    };
    assert!(whole.contains("HTTP/2.0\" 200") && ranges.contains("HTTP/2.0\" 206"), "{log}");
    let [worker] = children()[..] else { panic!("one worker asks") };
    drop(reader);
    // One that ends is started anew.
    rustix::process::kill_process(worker, Signal::KILL).unwrap();
    fetch(&sources);
    let [another] = children()[..] else { panic!("one worker asks") };
    assert_ne!(worker, another);
    drop(sources);
    assert!(children().is_empty(), "it ends when nobody needs it");
}
