//! Links and servers as they are in the field: what is made of each, what the user reads,
//! and that no byte is moved that need not be.
#![allow(clippy::disallowed_methods, reason = "test data, kept by no device")]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{World, hasty, http, noise};
use varve_fetch::{
    FetchError, HttpOptions, HttpTransport, Listener, Patience, Proxies, Sources, Transport,
    Workers,
};
use varve_format::Sha256Digest;
use varve_sys::task::Cancel;
use varve_testkit::faulty::{Act, Request, Server};
use varve_testkit::nginx::Nginx;

const LENGTH: usize = 1 << 20;
const FILE: &str = "packs/file";

fn world() -> World {
    let world = World::new();
    world.write(FILE, &noise(1, LENGTH));
    world
}

fn wanted() -> Vec<std::ops::Range<u64>> {
    (0..10).map(|n| n * 100_000 + 7..n * 100_000 + 1000 + n).collect()
}

/// Reads ten ranges far apart, as a plan of packs does.
fn read_ranges(sources: &Sources) -> Result<(), FetchError> {
    let (cancel, file) = (Cancel::new(), noise(1, LENGTH));
    let mut reader = sources.reader(FILE, &cancel);
    reader.expect(wanted());
    for range in wanted() {
        let mut bytes = Vec::new();
        reader.read(range.clone(), range.end, &mut bytes)?;
        assert_eq!(bytes, file[range.start as usize..range.end as usize], "{range:?}");
    }
    Ok(())
}

fn served(
    world: &World,
    rule: impl Fn(&Request) -> Act + Send + Sync + 'static,
) -> (Server, Sources) {
    let server = Server::new(&world.path(), rule);
    let sources = Sources::new(vec![http(&server.url)], hasty());
    (server, sources)
}

fn fetch(sources: &Sources) -> Result<Vec<u8>, FetchError> {
    let digest = Sha256Digest::of(&noise(1, LENGTH));
    sources.fetch_exact(FILE, LENGTH as u64, digest, &Cancel::new())
}

// ---- Several ranges ----

#[test]
fn several_ranges_come_in_one_answer() {
    let world = world();
    let (server, sources) = served(&world, |_| Act::Serve);
    read_ranges(&sources).unwrap();
    assert_eq!(server.log().len(), 1);
    assert_eq!(server.log()[0].ranges, wanted());
    let wanted: u64 = wanted().iter().map(|range| range.end - range.start).sum();
    assert!(server.sent() < wanted + 10 * 100, "{} for {wanted}", server.sent());
    assert_eq!(sources.traffic().bytes, wanted);
}

#[test]
fn servers_that_do_not_give_several_ranges_give_them_one_by_one() {
    let multipart = |text: &str| Act::Multipart(text.to_owned());
    let refused = Act::Answer(416, "content-range: bytes */9".into());
    for act in [
        Act::IgnoreSeveral,
        Act::FirstAlone,
        Act::Backwards,
        multipart("--4f1c0d7ea2--\r\n"),
        multipart("no parts at all"),
        refused,
        Act::Status(400),
        Act::Status(501),
    ] {
        let world = world();
        let shown = format!("{act:?}");
        let (server, sources) =
            served(&world, move |r| if r.ranges.len() > 1 { act.clone() } else { Act::Serve });
        read_ranges(&sources).unwrap_or_else(|error| panic!("{shown}: {error}"));
        assert!(server.log().len() <= 11, "{shown}: {} requests", server.log().len());
        // A whole file where parts were wanted is not read to its end.
        assert!(sources.traffic().bytes < 60_000, "{shown}: {:?}", sources.traffic());
    }
}

#[test]
fn parts_that_are_cut_go_on_where_they_were() {
    let world = world();
    let (server, sources) = served(&world, |r| Act::CutAfter(2_500 + r.earlier));
    read_ranges(&sources).unwrap();
    let wanted: u64 = wanted().iter().map(|range| range.end - range.start).sum();
    assert_eq!(sources.traffic().bytes, wanted, "no byte twice");
    assert!(server.log().len() > 3);
    assert!(server.log()[1..].iter().all(|r| r.if_range.is_some()));
}

#[test]
fn another_version_of_the_file_is_not_read_from_its_beginning() {
    let world = world();
    let other = noise(2, LENGTH);
    let (server, sources) = served(&world, move |r| match r.earlier {
        0 => Act::CutAfter(LENGTH * 3 / 4),
        _ => Act::Other(other.clone()),
    });
    let text = fetch(&sources).unwrap_err().to_string();
    assert!(text.contains("its digest is not the one"), "{text}");
    let log = server.log();
    assert!(log[1].if_range.is_some() && log[2].if_range.is_none(), "{log:?}");
    assert_eq!(log[2].ranges[0].start as usize, LENGTH * 3 / 4);
}

// ---- What is no file ----

/// The whole of what a user sees, for each thing that a server or a network may do.
#[test]
fn what_is_no_file_is_said_clearly() {
    let rows: Vec<(&str, Act)> = vec![
        ("a portal's page", Act::Html),
        ("a portal's page, called JSON", Act::HtmlAsJson),
        ("a portal's redirect", Act::Answer(302, "location: /login?device=1".into())),
        ("the standard's word for it", Act::Status(511)),
        ("redirected to a file", Act::Answer(301, "location: file:///etc/passwd".into())),
        ("redirected to itself", Act::Answer(302, "location: file".into())),
        ("redirected to nowhere", Act::Answer(302, "x: y".into())),
        ("compressed on the way", Act::WithHeader("content-encoding: gzip".into())),
        ("refused", Act::Status(403)),
        ("wants a login of the proxy", Act::Status(407)),
        ("in trouble", Act::Status(503)),
        ("not HTTP", Act::Garbage),
        ("headers without end", Act::EndlessHeaders),
        ("a head, byte by byte", Act::SlowHead(Duration::from_millis(30))),
        ("silent", Act::StallAfter(0)),
        ("another length", Act::Other(vec![7; 100])),
        ("without end", Act::Endless),
    ];
    let mut shown = String::new();
    for (what, act) in rows {
        let world = world();
        std::fs::write(world.file("login"), "<html>Who are you?</html>").unwrap();
        let (server, sources) =
            served(&world, move |r| if r.path == FILE { act.clone() } else { Act::Serve });
        let began = Instant::now();
        let error = fetch(&sources).unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(4), "{what}: {:?}", began.elapsed());
        assert!(server.sent() < 40 << 20, "{what}: {} bytes", server.sent());
        let text = error.to_string().replace(&server.url, "http://server/");
        shown.push_str(&format!("{what}:\n    {text}\n"));
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn redirects_to_where_the_file_is_are_followed() {
    let world = world();
    let mirror = Server::good(&world.path());
    let to = format!("location: {}{FILE}", mirror.url);
    let (_server, sources) = served(&world, move |_| Act::Answer(307, to.clone()));
    fetch(&sources).unwrap();
    assert_eq!(mirror.sent(), LENGTH as u64);
}

#[test]
fn a_server_that_asks_to_be_left_alone_is() {
    let world = world();
    let busy = Act::Answer(503, "retry-after: 1".into());
    let (_server, sources) =
        served(&world, move |r| if r.earlier == 0 { busy.clone() } else { Act::Serve });
    let began = Instant::now();
    fetch(&sources).unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
}

// ---- Pauses, and what is told ----

fn patient() -> Patience {
    Patience { attempts: 4, first_pause: Duration::from_secs(60), ..hasty() }
}

#[test]
fn a_cancel_ends_a_pause_and_a_silence_at_once() {
    let world = world();
    for act in [Act::Status(503), Act::StallAfter(10), Act::SlowHead(Duration::from_secs(1))] {
        let server = Server::new(&world.path(), move |_| act.clone());
        let options = HttpOptions { stall: Duration::from_secs(60), ..HttpOptions::default() };
        let transport = HttpTransport::new(&server.url, &options, &Workers::default()).unwrap();
        let patience = Patience { longest_pause: Duration::from_secs(60), ..patient() };
        let sources = Sources::new(vec![Arc::new(transport)], patience);
        let cancel = Cancel::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(150));
                cancel.cancel();
            });
            let began = Instant::now();
            let result = sources.fetch_limited("metadata/timestamp.json", 1000, &cancel);
            assert!(matches!(result, Err(FetchError::Cancelled)), "{result:?}");
            assert!(began.elapsed() < Duration::from_millis(600), "{:?}", began.elapsed());
        });
    }
}

#[test]
fn pauses_grow_and_are_told() {
    let world = world();
    let (told, hear) = mpsc::channel();
    let (_server, sources) = served(&world, |_| Act::Status(503));
    let sources = sources.telling(Listener::new(move |notice| {
        let varve_fetch::Notice::Waiting { pause, attempt, .. } = notice else { return };
        let _ = told.send((*pause, *attempt));
    }));
    fetch(&sources).unwrap_err();
    let told: Vec<_> = hear.try_iter().collect();
    assert_eq!(told.iter().map(|(_, attempt)| *attempt).collect::<Vec<_>>(), [(1, 3), (2, 3)]);
    let milliseconds = |at: usize| told[at].0.as_secs_f64() * 1e3;
    assert!((5.0..7.6).contains(&milliseconds(0)) && (10.0..15.1).contains(&milliseconds(1)));
}

// ---- Rate ----

#[test]
fn no_more_comes_in_a_second_than_is_allowed() {
    let world = world();
    let (_server, sources) = served(&world, |_| Act::Serve);
    let sources = sources.limited_to(1 << 20);
    let began = Instant::now();
    fetch(&sources).unwrap();
    let took = began.elapsed().as_secs_f64();
    assert!((0.7..1.5).contains(&took), "a second's worth in {took} s");
}

// ---- Ways ----

#[test]
fn addresses_of_the_sixth_version() {
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("not run: this machine has no ::1");
        return;
    }
    let world = world();
    let server = Server::on("[::1]:0", &world.path(), |_| Act::Serve);
    assert!(server.url.starts_with("http://[::1]:"));
    let sources = Sources::new(vec![http(&server.url)], hasty());
    fetch(&sources).unwrap();
}

/// `localhost` has both kinds of address, and the server listens at one of them.
#[test]
fn the_address_that_answers_is_found() {
    let world = world();
    let server = Server::good(&world.path());
    let url = server.url.replace("127.0.0.1", "localhost");
    fetch(&Sources::new(vec![http(&url)], hasty())).unwrap();
}

fn through(url: &str, proxies: Proxies) -> Sources {
    let options = HttpOptions { proxies, ..HttpOptions::default() };
    let transport = HttpTransport::new(url, &options, &Workers::default()).unwrap();
    Sources::new(vec![Arc::new(transport) as Arc<dyn Transport>], hasty())
}

#[test]
fn a_proxy_is_asked_for_the_whole_url() {
    let world = world();
    // It serves the repository wherever it is said to be.
    let proxy = Server::new(&world.path(), |r| match r.login.as_deref() {
        Some("Basic dXNlcjpwYXNz") => Act::Other(noise(1, LENGTH)),
        _ => Act::Status(407),
    });
    let address = proxy.url.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let url = "http://updates.invalid/debian";
    let proxies = Proxies::all(&format!("http://user:pass@{address}"), Vec::new());
    fetch(&through(url, proxies)).unwrap();
    assert_eq!(proxy.log()[0].path, format!("{url}/{FILE}"));
    let text = fetch(&through(url, Proxies::all(&address, Vec::new()))).unwrap_err().to_string();
    assert!(text.contains("wants another user name or password"), "{text}");
    // What is reached directly is not asked of it.
    let direct = Proxies::all(&address, vec!["127.0.0.1".into()]);
    let server = Server::good(&world.path());
    fetch(&through(&server.url, direct)).unwrap();
}

// ---- nginx, over TLS ----

fn nginx(world: &World, settings: &str) -> Option<Nginx> {
    let nginx = Nginx::start(&world.path(), settings);
    if nginx.is_none() {
        eprintln!("not run: nginx is not installed");
    }
    nginx
}

fn trusting(url: &str, proxies: Proxies) -> Sources {
    let certificates = varve_testkit::nginx::AUTHORITY.to_vec();
    let options = HttpOptions { certificates, proxies, ..HttpOptions::default() };
    Sources::new(
        vec![Arc::new(HttpTransport::new(url, &options, &Workers::default()).unwrap())],
        hasty(),
    )
}

#[test]
fn nginx_gives_several_ranges_by_http_2() {
    let world = world();
    let Some(nginx) = nginx(&world, "") else { return };
    let sources = trusting(&nginx.url(), Proxies::default());
    read_ranges(&sources).unwrap();
    fetch(&sources).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let log = nginx.read("access.log");
    assert_eq!(log.lines().count(), 2, "{log}");
    assert!(log.lines().all(|line| line.contains("HTTP/2.0\" 20")), "{log}");
    assert!(log.contains("\" 206 "), "{log}");
}

#[test]
fn nginx_that_takes_one_range_at_a_time_is_asked_so() {
    let world = world();
    let Some(nginx) = nginx(&world, "max_ranges 1;") else { return };
    let sources = trusting(&nginx.url(), Proxies::default());
    read_ranges(&sources).unwrap();
    assert!(sources.traffic().bytes < 60_000, "{:?}", sources.traffic());
}

#[test]
fn a_certificate_that_nobody_vouches_for_is_not_accepted() {
    let world = world();
    let Some(nginx) = nginx(&world, "") else { return };
    let sources = Sources::new(vec![http(&nginx.url())], hasty());
    let text = fetch(&sources).unwrap_err().to_string();
    assert!(text.contains("the server's certificate is not accepted: "), "{text}");
}

/// A proxy that knows `CONNECT` alone.
fn tunnels() -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (told, hear) = mpsc::channel();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                client.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            let to = head.split(' ').nth(1).unwrap().to_owned();
            let _ = told.send(head);
            let server = TcpStream::connect(to).unwrap();
            client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").unwrap();
            let pairs =
                [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)];
            for (mut from, mut to) in pairs {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    (address, hear)
}

#[test]
fn https_goes_through_a_proxy_unseen() {
    let world = world();
    let Some(nginx) = nginx(&world, "") else { return };
    let (address, hear) = tunnels();
    fetch(&trusting(&nginx.url(), Proxies::all(&address, Vec::new()))).unwrap();
    let head = hear.recv().unwrap();
    let host = nginx.url().replace("https://", "").replace('/', "");
    assert!(head.starts_with(&format!("CONNECT {host} HTTP/1.1\r\n")), "{head}");
}
