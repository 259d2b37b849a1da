//! What asks for another stack: the menu with keys pressed at a terminal, a probe, a
//! search; and what is on the disk of it.

use std::io::Read;
use std::os::fd::AsFd;
use std::time::Duration;

use varve_format::deployment::{LayerKind, LayerRecord};
use varve_format::probe::{AskedBy, Bisect, Judge, Probe, Verdict, Way};

use super::*;

impl Disk {
    /// Deployment d of `count` layers over a base, confirmed.
    fn stack(&mut self, count: usize, state: &[(&str, StateMode)]) {
        let mut names: Vec<String> = (0..count).map(|n| format!("l{n}")).collect();
        names.push("base".to_owned());
        for name in &names {
            let tree = self.layer(name);
            put(&tree.join("etc").join(name), "");
            let kind = if name == "base" { LayerKind::Base } else { LayerKind::Update };
            let record = LayerRecord {
                format: FORMAT,
                name: name.parse().unwrap(),
                created: 1_760_000_000,
                kind,
                release: None,
                title: String::new(),
                made_by: String::new(),
                captured_from: None,
                signed_by: None,
                size: Some(1000),
            };
            put(&tree.parent().unwrap().join("layer.toml"), &record.to_text());
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut record = self.record("d", &names);
        let path = |(path, mode): &(&str, StateMode)| StatePath {
            path: StateDir::new(path).unwrap(),
            mode: *mode,
            fresh: false,
        };
        record.state = state.iter().map(path).collect();
        self.deploy(&record, true);
        self.select("d", None, None);
    }

    fn note(&self, name: &str, text: &str) {
        put(&self.varve("boot").join(name), text);
    }

    fn probe(&self) -> Option<Probe> {
        fs::read(self.varve("boot/probe")).ok().map(|bytes| Probe::parse(&bytes).unwrap())
    }

    fn search(&self) -> Bisect {
        Bisect::parse(&fs::read(self.varve("boot/bisect")).unwrap()).unwrap()
    }

    /// Boots with a person at a terminal who waits for each text and then types.
    fn boot_with(&self, command_line: &str, acts: &[(&str, &str)]) -> (BootReport, String) {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let path = ptsname(&person, Vec::new()).unwrap().into_string().unwrap();
        // Held open, so that the pair outlives the menu.
        let _line = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let machine = Machine { screens: vec![path.into()], ..machine(command_line) };
        let acts: Vec<(String, String)> =
            acts.iter().map(|(see, key)| ((*see).to_owned(), (*key).to_owned())).collect();
        let watcher = std::thread::spawn(move || {
            rustix::io::ioctl_fionbio(person.as_fd(), true).unwrap();
            let mut person = File::from(person);
            let (mut seen, mut from) = (String::new(), 0);
            let end = Instant::now() + Duration::from_secs(20);
            for (see, key) in acts {
                loop {
                    let mut bytes = [0; 4096];
                    let count = person.read(&mut bytes).unwrap_or(0);
                    seen += &String::from_utf8_lossy(&bytes[..count]);
                    if let Some(at) = seen[from..].find(&see) {
                        from += at + see.len();
                        break;
                    }
                    assert!(Instant::now() < end, "{see:?} never came:\n{seen}");
                    std::thread::sleep(Duration::from_millis(5));
                }
                person.write_all(key.as_bytes()).unwrap();
            }
            (person, seen)
        });
        let outcome = self.try_boot(&machine).unwrap();
        let (_person, seen) = watcher.join().unwrap();
        let Outcome::Booted(booted) = outcome else { panic!("{outcome:?}") };
        (booted.report, seen)
    }
}

fn names(report: &BootReport) -> Vec<&str> {
    report.off.iter().map(|name| name.as_str()).collect()
}

#[test]
fn at_the_menu_layers_come_off_one_by_one_and_all_go_back() {
    let Some(mut disk) = Disk::new() else { return };
    disk.stack(2, &[]);
    let line = "varve.menu varve.menu-timeout=60";
    for (off, top) in [(&["l0"][..], "l1"), (&["l0", "l1"], "base")] {
        let (report, seen) = disk.boot_with(line, &[("put it all back", "1")]);
        assert_eq!((&*report.reason, names(&report)), ("menu", off.to_vec()), "{seen}");
        assert_eq!(report.stripped, off.len() as u32);
        assert_eq!(get(&disk.path("root/etc/who")), top);
        let probe = disk.probe().unwrap();
        assert_eq!((probe.off.len(), probe.tries, probe.by), (off.len(), 0, AskedBy::Menu));
        disk.power_off();
    }
    let acts =
        [("The last try was without l0, l1", ""), ("put it all back", "1"), ("All but", "4")];
    let (report, _) = disk.boot_with(line, &acts);
    assert_eq!((&*report.reason, report.stripped), ("latest", 0));
    assert!(disk.probe().unwrap().off.is_empty(), "the next menu begins anew");
    disk.power_off();
    // Only the base; and without a menu all of it boots.
    let (report, _) = disk.boot_with(line, &[("put it all back", "2")]);
    assert_eq!((&*report.reason, report.stripped), ("menu", 2));
    disk.power_off();
    assert_eq!(disk.boot("").stripped, 0, "a try is for once");
}

#[test]
fn a_menu_that_nobody_answers_goes_on_as_usual() {
    let Some(mut disk) = Disk::new() else { return };
    disk.stack(1, &[]);
    let begun = Instant::now();
    let (report, seen) =
        disk.boot_with("varve.menu=always varve.menu-timeout=1", &[("in 1 second", "x \u{1b}[A")]);
    assert_eq!((&*report.reason, report.stripped), ("latest", 0), "{seen}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(disk.probe(), None, "nothing is written");
    disk.power_off();
    // With nobody to see it, it is not waited for at all.
    let begun = Instant::now();
    disk.boot("varve.menu");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_menu_is_shown_when_the_latest_failed_its_trials() {
    let Some(mut disk) = Disk::new() else { return };
    disk.two(|_| {});
    disk.select("b", Some("a"), Some(0));
    let (report, _) = disk.boot_with("", &[("b failed its trials.", "1")]);
    assert_eq!((report.deployment.as_str(), &*report.reason), ("b", "menu"));
    assert_eq!(names(&report), ["u"]);
    disk.power_off();
    let (report, _) = disk.boot_with("", &[("b failed its trials.", "\u{1b}")]);
    assert_eq!((report.deployment.as_str(), report.key_held), ("a", true));
    disk.power_off();
    let report = disk.boot("varve.menu=never");
    assert_eq!((report.deployment.as_str(), &*report.reason), ("a", "previous"));
}

#[test]
fn what_is_saved_for_all_systems_is_asked_about_and_kept_and_the_rest_is_forgotten() {
    let Some(mut disk) = Disk::new() else { return };
    disk.stack(1, &[("/etc", StateMode::Versioned), ("/home", StateMode::Shared)]);
    disk.boot("");
    put(&disk.path("root/etc/mine"), "kept");
    disk.power_off();
    let acts = [("put it all back", "1"), ("may not open", "\r")];
    let (report, _) = disk.boot_with("varve.menu", &acts);
    assert_eq!(report.reason, "menu");
    assert_eq!(get(&disk.path("root/etc/mine")), "kept", "the user's changes are seen");
    put(&disk.path("root/etc/tried"), "");
    put(&disk.path("root/home/work"), "");
    disk.power_off();
    disk.boot("");
    assert!(!disk.path("root/etc/tried").exists(), "a try is forgotten");
    assert!(disk.path("root/home/work").exists(), "work is not");
    assert_eq!(get(&disk.path("root/etc/mine")), "kept");
}

#[test]
fn a_probe_boots_once() {
    let Some(mut disk) = Disk::new() else { return };
    disk.stack(2, &[]);
    let probe = |deployment: &str| Probe {
        deployment: deployment.parse().unwrap(),
        off: vec!["l1".parse().unwrap()],
        by: AskedBy::Strip,
        tries: 1,
    };
    disk.note("probe", &probe("d").to_text());
    let report = disk.boot("");
    assert_eq!((&*report.reason, names(&report)), ("probe", vec!["l1"]));
    assert!(!disk.path("root/etc/l1").exists() && disk.path("root/etc/l0").exists());
    assert_eq!(disk.probe().unwrap().tries, 0);
    disk.power_off();
    let report = disk.boot("");
    assert_eq!((&*report.reason, report.stripped), ("latest", 0));
    disk.power_off();
    // One that cannot be taken is passed over, and so is one that cannot be read.
    disk.note("probe", &probe("x").to_text());
    let report = disk.boot("");
    assert_eq!(report.reason, "latest");
    assert!(report.passed_over[0].contains("x is not on this device"), "{report:?}");
    disk.power_off();
    disk.note("probe", "not a probe");
    let report = disk.boot("");
    assert_eq!(report.reason, "latest");
    assert!(report.warnings[0].contains("boot/probe is not used"), "{report:?}");
    disk.power_off();
    // Escape comes before it, and it is not spent.
    disk.note("probe", &probe("d").to_text());
    let report = disk.boot("varve.deployment=d");
    assert_eq!((&*report.reason, report.stripped), ("command-line", 0));
    assert_eq!(disk.probe().unwrap().tries, 1);
}

/// Every boot of the whole stack, or of one with the bad layer in it, hangs: nothing but
/// the boot stage runs, and it finds the layer. A boot that comes up is judged as the
/// update manager does it.
#[test]
fn a_layer_that_hangs_is_found_by_the_boot_stage() {
    let Some(mut disk) = Disk::new() else { return };
    disk.stack(8, &[]);
    let acts = [("put it all back", "3"), ("Go on?", "\r")];
    let (first, _) = disk.boot_with("varve.menu", &acts);
    assert_eq!((&*first.reason, first.stripped), ("search", 4));
    let mut boots = 1;
    loop {
        let hangs = disk.path("root/etc/l5").exists();
        let mut search = disk.search();
        if !hangs && search.running.is_some() {
            varve_boot::bisect::answer(&mut search, Verdict::Good, "it came up");
            disk.note("bisect", &search.to_text());
        } else if !hangs {
            break;
        }
        disk.power_off();
        let report = disk.boot("");
        assert_eq!(report.reason, "search", "{:?}", disk.search());
        boots += 1;
        assert!(boots < 9, "{:?}", disk.search());
    }
    // Three probes, the proof, and the stack that works.
    assert_eq!(boots, 5);
    let search = disk.search();
    let layers = vec![5];
    let found =
        varve_boot::bisect::Finding::Found { works_without: layers.clone(), layers, proven: true };
    assert_eq!(varve_boot::bisect::next(&search), varve_boot::bisect::Next::Over(found));
    disk.power_off();
    // It stays so until somebody decides; at the menu all goes back.
    let (report, _) = disk.boot_with("varve.menu", &[("The search found: l5", "4")]);
    assert_eq!((&*report.reason, report.stripped), ("latest", 0));
    assert!(!disk.search().active);
}

#[test]
fn a_search_whose_stacks_cannot_be_put_together_ends_at_the_usual_system() {
    let Some(mut disk) = Disk::new() else { return };
    disk.stack(3, &[]);
    let search = Bisect {
        deployment: "d".parse().unwrap(),
        layers: ["l0", "l1", "l2"].map(|name| name.parse().unwrap()).to_vec(),
        way: Way::Prefix,
        judge: Judge::Person,
        agree: 1,
        active: true,
        running: None,
        answers: Vec::new(),
    };
    disk.note("bisect", &search.to_text());
    // Only the whole has an init: every probe fails at once, in one boot.
    for layer in ["l1", "l2", "base"] {
        fs::remove_file(disk.varve("layers").join(layer).join("tree/usr/sbin/init")).unwrap();
    }
    let report = disk.boot("");
    assert_eq!((&*report.reason, report.stripped), ("latest", 0), "{report:?}");
    assert!(report.warnings.iter().any(|line| line.contains("no init")), "{report:?}");
    assert!(disk.search().answers.len() <= 3);
}

#[test]
fn what_is_chosen_at_the_menu_boots_on_a_full_disk() {
    let Some(mut disk) = Disk::new() else { return };
    disk.stack(1, &[]);
    let mut file = File::options().append(true).create(true).open(disk.varve("full")).unwrap();
    while file.write_all(&[0; 1 << 16]).is_ok() {}
    while file.write_all(&[0]).is_ok() {}
    let (report, _) = disk.boot_with("varve.menu", &[("put it all back", "1")]);
    assert_eq!((&*report.reason, names(&report)), ("menu", vec!["l0"]), "{report:?}");
}
