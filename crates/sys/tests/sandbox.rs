//! What a process has given up is gone: it tries, in a process of its own.

#![cfg(feature = "sandbox")]
#![allow(clippy::disallowed_methods, reason = "the test tries what it should not be able to")]

use std::fs::File;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};
use varve_sys::sandbox::{Keeps, enter};

/// Opens to read, and a little more.
fn open(path: &str, more: OFlags) -> bool {
    rustix::fs::open(path, OFlags::RDONLY | more, Mode::RUSR).is_ok()
}

/// What it does, and whether it could.
fn attempts(port: u16, socket: &str, own: &str, parent: Pid) -> Vec<(&'static str, bool)> {
    vec![
        ("read a file", File::open(own).is_ok()),
        ("read what names are looked up by", File::open("/etc/hosts").is_ok()),
        ("write there", File::options().append(true).open("/etc/hosts").is_ok()),
        ("write a file", File::create(format!("{own}.new")).is_ok()),
        ("empty a file", open(own, OFlags::TRUNC)),
        ("make a file", open(&format!("{own}.made"), OFlags::CREATE)),
        ("change a file", File::options().append(true).open(own).is_ok()),
        ("delete a file", std::fs::remove_file(own).is_ok()),
        ("connect by TCP", TcpStream::connect(("127.0.0.1", port)).is_ok()),
        ("listen by TCP", TcpListener::bind("127.0.0.1:0").is_ok()),
        ("ask by UDP", UdpSocket::bind("127.0.0.1:0").is_ok()),
        ("reach a local socket", UnixStream::connect(socket).is_ok()),
        ("start a program", Command::new("/bin/true").spawn().is_ok()),
        ("signal its parent", rustix::process::kill_process(parent, Signal::CONT).is_ok()),
        ("unmount", rustix::mount::unmount("/proc", rustix::mount::UnmountFlags::DETACH).is_ok()),
        ("be root again", rustix::thread::set_thread_uid(rustix::process::Uid::ROOT).is_ok()),
        ("compute on a thread", std::thread::spawn(|| vec![1_u8; 1 << 20].len()).join().is_ok()),
    ]
}

#[test]
#[ignore = "the other test runs it, in a process of its own"]
fn inside() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let (port, socket, own) = (variable("PORT"), variable("SOCKET"), variable("OWN"));
    let parent = rustix::process::getppid().unwrap();
    let keeps = if variable("KEEPS") == "web" { Keeps::Web } else { Keeps::Nothing };
    println!("\nlacks {}", enter(keeps, 2 << 30).unwrap().join(", "));
    for (what, could) in attempts(port.parse().unwrap(), &socket, &own, parent) {
        println!("{} {what}", if could { "could" } else { "could-not" });
    }
}

/// What it says that it could do, and what the kernel lacks.
fn run(keeps: &str) -> (Vec<String>, String) {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own");
    std::fs::write(&own, "text").unwrap();
    // Whoever it becomes may do all of it, if nothing else forbids it.
    let open: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(folder.path(), open.clone()).unwrap();
    std::fs::set_permissions(&own, open.clone()).unwrap();
    let socket = folder.path().join("socket");
    let _local = UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, open).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["inside", "--exact", "--ignored", "--nocapture"])
        .env("KEEPS", keeps)
        .env("PORT", listener.local_addr().unwrap().port().to_string())
        .env("SOCKET", &socket)
        .env("OWN", &own)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let field = |key: &str| {
        let lines = said.lines().filter_map(move |line| line.strip_prefix(key));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(field("could").len(), 17, "{said}\n{errors}");
    let lacks = field("lacks ").concat();
    if !lacks.is_empty() {
        eprintln!("this kernel has no {lacks}");
    }
    (field("could "), lacks)
}

#[test]
fn what_computes_can_do_nothing_else() {
    let (could, lacks) = run("nothing");
    if lacks.contains("seccomp") {
        return eprintln!("not looked at: this kernel has no seccomp");
    }
    assert_eq!(could, ["compute on a thread"]);
}

#[test]
fn what_asks_servers_connects_and_looks_names_up_and_no_more() {
    let (could, lacks) = run("web");
    if !lacks.is_empty() {
        return eprintln!("not looked at: this kernel has no {lacks}");
    }
    let connects = ["read what names are looked up by", "connect by TCP", "ask by UDP"];
    assert_eq!(could, [&connects[..], &["compute on a thread"]].concat());
}
