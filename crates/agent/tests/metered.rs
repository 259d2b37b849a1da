//! A metered link is respected: NetworkManager's name on a real bus, asked as on a device.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{Lab, noise, now, with_context};
use varve_agent::choose::Wish;
use varve_agent::config::{OnMetered, Seconds, Source};
use varve_agent::plan::Refusal;
use varve_agent::upgrade::{self, Prepared};
use varve_agent::{Device, Error};
use varve_sys::task::Cancel;
use varve_testkit::faulty::{self, Server};

/// A bus of its own; it ends with the test.
struct Bus {
    daemon: Child,
    address: String,
}

impl Bus {
    fn start() -> Self {
        let mut daemon = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--nopidfile", "--print-address"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon is installed: cargo xtask test sees to it");
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { daemon, address: address.trim().to_owned() }
    }

    /// Takes NetworkManager's name, and answers for it for as long as what it gives lives.
    fn manager(&self, says: &Arc<AtomicU32>) -> zbus::Connection {
        let builder = zbus::connection::Builder::address(self.address.as_str())
            .name("org.freedesktop.NetworkManager")
            .serve_at("/org/freedesktop/NetworkManager", Manager(says.clone()));
        zbus::block_on(builder.build()).unwrap()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// As much of NetworkManager as says whether the link is metered.
struct Manager(Arc<AtomicU32>);

#[zbus::interface(name = "org.freedesktop.NetworkManager")]
impl Manager {
    #[zbus(property)]
    fn metered(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

struct Link {
    lab: Lab,
    server: Server,
    bus: Bus,
    rule: OnMetered,
    /// How long a link that becomes metered is waited for.
    wait: Duration,
}

impl Link {
    fn device(&self) -> Device {
        let mut places = self.lab.places();
        places.link.bus = Some(self.bus.address.clone());
        places.link.ask_every = Some(Duration::from_millis(50));
        let mut device = Device::open(places).unwrap();
        let url = self.server.url.trim_end_matches('/').to_owned();
        device.config.sources = vec![Source::Url(url)];
        device.config.download.metered = self.rule;
        device.config.download.metered_wait = Some(Seconds(self.wait));
        device
    }

    /// Why an upgrade is refused, or what it fetched.
    fn upgrade(&self, dry_run: bool) -> Result<u64, Error> {
        let device = self.device();
        let writer = device.lock("upgrade", now()).unwrap();
        with_context(&Cancel::new(), |context| {
            let prepared = upgrade::prepare(&device, &writer, &Wish::default(), dry_run, context)?;
            let Prepared::Ready(ready) = prepared else { panic!("there is a newer release") };
            ready.plan.refuse()?;
            if dry_run {
                return Ok(ready.plan.fetch.bytes);
            }
            ready.run(&device, &writer, context).map(|done| done.fetched)
        })
    }
}

const AT_ONCE: Duration = Duration::from_millis(1);

fn is_refused(result: Result<u64, Error>) -> bool {
    match result {
        Err(Error::Refused(Refusal::Metered { .. })) => true,
        Err(error) => panic!("{error}"),
        Ok(_) => false,
    }
}

#[test]
fn nothing_is_fetched_over_a_metered_link_unless_it_may_be() {
    let lab = Lab::new();
    lab.publish("r1");
    lab.init();
    lab.tree().file("usr/bin/tool2", noise(7, 200_000));
    lab.publish("r2");
    let (bus, server) = (Bus::start(), Server::good(&lab.repository_path()));
    let mut link = Link { lab, server, bus, rule: OnMetered::Refuse, wait: AT_ONCE };
    // Nobody has the name: nothing is known, and nothing is in the way.
    assert!(!is_refused(link.upgrade(true)));

    let says = Arc::new(AtomicU32::new(1));
    let _manager = link.bus.manager(&says);
    for (says_so, refused) in [(0, false), (1, true), (2, false), (3, true), (4, false)] {
        says.store(says_so, Ordering::SeqCst);
        assert_eq!(is_refused(link.upgrade(true)), refused, "NetworkManager says {says_so}");
    }
    says.store(1, Ordering::SeqCst);
    let before = link.server.log().len();
    assert!(is_refused(link.upgrade(false)));
    let asked: Vec<_> = link.server.log()[before..].iter().map(|r| r.path.clone()).collect();
    assert!(asked.iter().all(|path| path.starts_with("metadata/")), "{asked:?}");
    // There is no delta, so packs would do it.
    link.rule = OnMetered::DeltaOnly;
    assert!(is_refused(link.upgrade(false)));
    link.rule = OnMetered::Allow;
    assert!(link.upgrade(false).unwrap() > 200_000);
}

#[test]
fn a_delta_may_come_over_a_metered_link_and_packs_in_its_place_may_not() {
    let lab = Lab::new();
    lab.publish("r1");
    lab.init();
    // Of a large file that is here, forty bytes become others.
    let mut large = noise(2, 3_000_000);
    large[1_500_000..1_500_040].copy_from_slice(&noise(50, 40));
    lab.tree().file("usr/lib/large", large);
    lab.publish_with_deltas("r2", &["r1"]);
    let (bus, server) = (Bus::start(), Server::good(&lab.repository_path()));
    let link = Link { lab, server, bus, rule: OnMetered::DeltaOnly, wait: AT_ONCE };
    let says = Arc::new(AtomicU32::new(1));
    let _manager = link.bus.manager(&says);
    // The delta is damaged: what it would have made is not fetched another way.
    let deltas = link.lab.repository_path().join("deltas");
    let delta = std::fs::read_dir(deltas)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|end| end == "delta"))
        .unwrap();
    let whole = std::fs::read(&delta).unwrap();
    let mut damaged = whole.clone();
    let at = damaged.len() - 20;
    damaged[at] ^= 1;
    std::fs::write(&delta, damaged).unwrap();
    assert!(is_refused(link.upgrade(false)));
    std::fs::write(&delta, whole).unwrap();
    assert!(!is_refused(link.upgrade(true)));
    assert!(link.upgrade(false).unwrap() > 0);
}

#[test]
fn a_link_that_becomes_metered_under_way_is_left_alone() {
    let lab = Lab::new();
    lab.publish("r1");
    lab.init();
    lab.tree().file("usr/bin/tool2", noise(7, 900_000));
    lab.publish("r2");
    let (bus, server) = (Bus::start(), Server::good(&lab.repository_path()));
    let mut link = Link { lab, server, bus, rule: OnMetered::Refuse, wait: AT_ONCE };
    let says = Arc::new(AtomicU32::new(2));
    let _manager = link.bus.manager(&says);
    link.server.link(faulty::Link { rate: 500_000, cut_at: None });
    // Once a part has come, it is metered; then it is for a while only.
    let (half, whole) = (link.server.moved() + 300_000, link.server.moved() + 900_000);
    let becomes = |from: u64, number: u32| {
        // Not for ever: an upgrade that fails has its own word.
        let end = Instant::now() + Duration::from_secs(30);
        while link.server.moved() < from && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        says.store(number, Ordering::SeqCst);
    };
    let refused = std::thread::scope(|scope| {
        scope.spawn(|| becomes(half, 1));
        link.upgrade(false)
    });
    assert!(is_refused(refused));
    let came = link.server.moved();
    assert!(came < whole, "{came} bytes of {whole}: it was not left alone");

    says.store(2, Ordering::SeqCst);
    link.wait = Duration::from_secs(30);
    let fetched = std::thread::scope(|scope| {
        scope.spawn(|| {
            becomes(came + 200_000, 3);
            std::thread::sleep(Duration::from_millis(300));
            let before = link.server.moved();
            std::thread::sleep(Duration::from_millis(300));
            // What was in the kernel's buffers at most.
            let meanwhile = link.server.moved() - before;
            says.store(2, Ordering::SeqCst);
            assert!(meanwhile < 100_000, "{meanwhile} bytes while it was metered");
        });
        link.upgrade(false)
    });
    // It went on by itself, with what had come before.
    assert!(fetched.unwrap() < 800_000);
}
