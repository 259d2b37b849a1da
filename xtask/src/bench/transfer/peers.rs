//! The peers' rows, each with its own tools as Debian has them.

use super::ground::{Ground, must_equal};
use super::record::{Row, Way};
use super::{Add, ROUNDS, from_server};
use crate::bench::clients::{Client, Repository};
use crate::bench::measure::{Cost, cost, settle};
use crate::project::{Result, output, program, step, write};
use crate::trees::remove;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use varve_testkit::relay::Relay;

fn timed(what: &str, command: &Command) -> Result<Cost> {
    settle();
    step(what, || cost(command))
}

pub(super) fn ostree(ground: &Ground, add: &mut Add<'_>) -> Result {
    let scratch = ground.scratch("ostree")?;
    let repository = Repository::init(&scratch)?;
    let old = step("ostree commit of the old release", || repository.commit(&ground.old))?;
    let client = Client::new(&repository, &scratch)?;
    let commit =
        timed("ostree commit of the new release", &repository.commit_command(&ground.new))?;
    let new = output(repository.command().args(["rev-parse", "release"]))?;
    repository.summary()?;
    let pull = |deltas: &str| {
        from_server(&repository.folder, ROUNDS, |url| {
            client.with(url, |folder| cost(&client.pull(folder, deltas)))
        })
    };
    add.row(Way::Ostree, pull("--disable-static-deltas")?.made_by(commit))?;
    let mut generate = repository.command();
    generate.args(["static-delta", "generate"]);
    generate.args([format!("--from={old}"), format!("--to={}", new.trim())]);
    let generate = timed("ostree static-delta generate", &generate)?;
    repository.summary()?;
    add.row(Way::OstreeDelta, pull("--require-static-deltas")?.made_by(generate))?;
    remove(&scratch)
}

pub(super) fn casync(ground: &Ground, add: &mut Add<'_>) -> Result {
    let scratch = ground.scratch("casync")?;
    let repository = scratch.join("repository");
    fs::create_dir(&repository)?;
    let store = format!("--store={}", repository.join("store.castr").display());
    let mut make = program("casync");
    make.args(["make", &store]).arg(repository.join("new.caidx")).arg(&ground.new);
    let make = timed("casync make", &make)?;
    let target = scratch.join("target");
    let extracted = from_server(&repository, 1, |url| {
        let mut extract = program("casync");
        extract.args(["extract", &format!("--store={url}/store.castr")]);
        extract.arg(format!("--seed={}", ground.old.display()));
        timed("casync extract", extract.arg(format!("{url}/new.caidx")).arg(&target))
    })?;
    must_equal(&target, &ground.new)?;
    add.row(Way::Casync, extracted.made_by(make))?;
    remove(&scratch)
}

pub(super) fn zchunk(ground: &Ground, add: &mut Add<'_>) -> Result {
    let scratch = ground.scratch("zchunk")?;
    let [old, new] = ground.tars()?;
    let [old_zck, new_zck] = ["old.zck", "new.zck"].map(|name| scratch.join(name));
    let zck = |from: &Path, to: &Path| {
        let mut zck = program("zck");
        zck.arg("-o").arg(to).arg(from);
        zck
    };
    timed("zck of the old release", &zck(old, &old_zck))?;
    let make = timed("zck of the new release", &zck(new, &new_zck))?;
    let here = scratch.join("device");
    fs::create_dir(&here)?;
    let fetched = from_server(&scratch, 1, |url| {
        let mut fetch = program("zckdl");
        // It writes where it stands.
        fetch.arg("-s").arg(&old_zck).arg(format!("{url}/new.zck")).current_dir(&here);
        timed("zckdl", &fetch)
    })?;
    output(program("cmp").arg(&new_zck).arg(here.join("new.zck")))?;
    add.row(Way::Zchunk, fetched.made_by(make))?;
    remove(&scratch)
}

pub(super) fn zstd(ground: &Ground, add: &mut Add<'_>) -> Result {
    let scratch = ground.scratch("zstd")?;
    let [old, new] = ground.tars()?;
    let zstd = |words: &[&str]| {
        let mut zstd = program("zstd");
        zstd.args(["--quiet", "--long=31"]).arg(format!("--patch-from={}", old.display()));
        zstd.args(words);
        zstd
    };
    let patch = scratch.join("patch");
    let mut make = zstd(&["-19"]);
    make.arg(new).arg("-o").arg(&patch);
    let make = timed("zstd -19 --patch-from", &make)?;
    let target = scratch.join("new.tar");
    let mut apply = zstd(&["-d"]);
    apply.arg(&patch).arg("-o").arg(&target);
    let apply = timed("zstd -d --patch-from", &apply)?;
    output(program("cmp").arg(new).arg(&target))?;
    add.row(Way::Zstd, Row::new(fs::metadata(&patch)?.len(), None, apply).made_by(make))?;
    remove(&scratch)
}

pub(super) fn rsync(ground: &Ground, add: &mut Add<'_>) -> Result {
    let scratch = ground.scratch("rsync")?;
    let target = scratch.join("target");
    output(program("cp").arg("--archive").arg(&ground.old).arg(&target))?;
    let daemon = Daemon::start(&scratch, &ground.new)?;
    let relay = Relay::start((Ipv4Addr::LOCALHOST, daemon.port).into())?;
    let mut rsync = program("rsync");
    // Times alone do not tell what changed between two releases that were made alike.
    rsync.args(["-aHAXz", "--numeric-ids", "--checksum", "--delete"]);
    rsync.arg(format!("rsync://127.0.0.1:{}/new/", relay.port())).arg(&target);
    let rsync = timed("rsync -z", &rsync)?;
    must_equal(&target, &ground.new)?;
    add.row(Way::Rsync, Row::new(relay.moved(), None, rsync))?;
    drop(daemon);
    remove(&scratch)
}

/// A daemon of rsync; ended on drop.
struct Daemon {
    child: Child,
    port: u16,
}

impl Daemon {
    fn start(scratch: &Path, tree: &Path) -> Result<Self> {
        let config = scratch.join("rsyncd.conf");
        let text = "use chroot = no\nuid = 0\ngid = 0\nread only = yes\n[new]\npath = ";
        write(&config, format!("{text}{}\n", tree.display()))?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = program("rsync");
        command.args(["--daemon", "--no-detach", "--address=127.0.0.1"]);
        command.arg(format!("--port={port}")).arg(format!("--config={}", config.display()));
        let child = command.stdin(Stdio::null()).spawn()?;
        let mut daemon = Self { child, port };
        let end = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = daemon.child.try_wait()? {
                return Err(format!("the daemon of rsync ended with {status}").into());
            }
            if Instant::now() > end {
                return Err("the daemon of rsync does not answer".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
