use varve_agent::observe::{Booted, PartStatus, SpaceStatus, Unfinished};
use varve_agent::rejected::Rejection;
use varve_format::ReleaseDigest;
use varve_format::deployment::{Layout, ReleaseRef, RootMode};
use varve_rootfs::space::Cost;

use super::*;

fn release(n: u8) -> ReleaseRef {
    let name = format!("debian-13.{n}").parse().unwrap();
    ReleaseRef { name, digest: ReleaseDigest([n; 32]), sequence: n.into() }
}

fn deployment(n: u8, confirmed: bool, pinned: bool) -> DeploymentStatus {
    DeploymentStatus {
        name: format!("debian-13.{n}").parse().unwrap(),
        number: n.into(),
        release: Some(release(n)),
        created: "2026-11-23T14:00:00Z".parse().unwrap(),
        layout: Layout::Overlay,
        stack: vec![format!("debian-13.{n}"), "base".to_owned()],
        own: Vec::new(),
        title: String::new(),
        confirmed,
        pinned,
        cost: Some(Cost { total: 612_000_000, alone: 79_000_000 + u64::from(n) }),
    }
}

fn failed(n: u8, reason: &str) -> Rejection {
    let ReleaseRef { name, digest, sequence } = release(n);
    let time = "2026-11-23T15:04:05Z".parse().unwrap();
    Rejection { digest, name, sequence, time, reason: reason.to_owned() }
}

fn plain() -> Status {
    Status {
        latest: Some("debian-13.2".parse().unwrap()),
        previous: Some("debian-13.1".parse().unwrap()),
        tries: None,
        selection_problem: None,
        booted: Some(Booted {
            soft_reboot: false,
            deployment: "debian-13.2".parse().unwrap(),
            reason: "latest".to_owned(),
            stripped: 0,
            root_mode: RootMode::ReadOnly,
            kernel: "6.12.117+deb13-cloud-amd64".to_owned(),
            microseconds: 5210,
            passed_over: Vec::new(),
            warnings: Vec::new(),
        }),
        live: None,
        situation: Vec::new(),
        deployments: vec![deployment(1, true, true), deployment(2, true, false)],
        failed_releases: Vec::new(),
        parts: vec![PartStatus {
            name: "base".parse().unwrap(),
            cost: Cost { total: 500_000_000, alone: 1_000_000 },
        }],
        collectable: Collectable { deployments: 1, parts: 2, bytes: 80_000_000 },
        unfinished: Unfinished::default(),
        space: SpaceStatus {
            total: 8 << 30,
            free: 3 << 30,
            free_inodes: Some(412_345),
            may_share_blocks: true,
        },
        strange: Vec::new(),
    }
}

#[test]
fn status_of_a_quiet_device() {
    insta::assert_snapshot!(status(&plain(), false));
}

#[test]
fn status_says_what_things_take_where_it_was_asked_for() {
    let mut without = plain();
    without.deployments.iter_mut().for_each(|deployment| deployment.cost = None);
    let text = status(&without, false);
    assert!(text.contains("STAGED      STATE") && !text.contains("TAKES"), "{text}");
}

#[test]
fn status_after_a_release_failed() {
    let why = "the health check \"ssh\" failed with exit status 3: no route";
    let mut after = plain();
    after.latest = Some("debian-13.1".parse().unwrap());
    after.previous = None;
    after.booted.as_mut().unwrap().deployment = "debian-13.1".parse().unwrap();
    after.deployments[1].confirmed = false;
    after.failed_releases = vec![failed(2, why)];
    after.situation = vec![Situation::RolledBack { release: failed(2, why) }];
    after.unfinished = Unfinished { files: 17, bytes: 12_345_678 };
    after.strange = vec!["deployments/junk: it is not a directory".to_owned()];
    insta::assert_snapshot!(status(&after, true));
}

/// What each situation is told as.
#[test]
fn situations() {
    let name = |text: &str| text.parse().unwrap();
    let (b, a) = (|| name("debian-13.2"), || name("debian-13.1"));
    let all = [
        Situation::NoSelection { why: "the selection is missing".to_owned() },
        Situation::TriesUsedUp { latest: b(), booted: a() },
        Situation::PassedOver { latest: b(), booted: a(), why: vec![] },
        Situation::PassedOver {
            latest: b(),
            booted: a(),
            why: vec!["debian-13.2 could not be put together: cannot open layers/u2".to_owned()],
        },
        Situation::AskedFor { booted: a(), latest: b(), key: true },
        Situation::AskedFor { booted: a(), latest: b(), key: false },
        Situation::OnTrial { latest: b(), tries: 1 },
        Situation::RebootNeeded { latest: b(), booted: a() },
        Situation::Stripped { layers: 2 },
    ];
    let text: Vec<_> = all.iter().map(situation).collect();
    insta::assert_snapshot!(text.join("\n---\n"));
}

#[test]
fn history_in_sentences() {
    let text = "\
2026-11-20T10:00:00Z init release=debian-13.1 deployment=debian-13.1 fetched=190000000
2026-11-23T14:41:56Z upgrade release=debian-13.2 deployment=debian-13.2 fetched=79012345 reused=0
2026-11-23T14:45:00Z check-failed deployment=debian-13.2 check=ssh how=failed\\x20with\\x20exit\\x20status\\x203 output=one\\ntwo
2026-11-23T14:45:00Z roll-back from=debian-13.2 to=debian-13.1 reason=the\\x20health\\x20check
2026-11-23T14:46:00Z fall-back to=debian-13.1 reason=the\\x20selection\\x20is\\x20missing
2026-11-23T14:47:00Z fall-back from=debian-13.2 to=debian-13.1 reason=it\\x20did\\x20not\\x20come\\x20up
2026-11-23T14:48:00Z upgrade-failed release=debian-13.3 reason=no\\x20room
2026-11-23T14:49:00Z confirm deployment=debian-13.1
2026-11-23T14:50:00Z refund deployment=debian-13.2 tries=3
2026-11-23T14:51:00Z merge deployment=debian-13.2 layers=2 into=debian-13.2.merged
2026-11-23T14:52:00Z collect deployments=debian-13.0 bytes=1000000
2026-11-23T14:53:00Z collect deployments= bytes=512
2026-11-23T14:54:00Z pin deployment=debian-13.1 pinned=true
2030-01-01T00:00:00Z moved-to-mars planet=mars
a torn li
";
    insta::assert_snapshot!(history(&varve_agent::history::parse(text.as_bytes())));
    assert_eq!(history(&[]), "Nothing has happened yet.\n");
}

#[test]
fn verdicts() {
    let name = |text: &str| text.parse().unwrap();
    let (b, a) = (|| name("debian-13.2"), || name("debian-13.1"));
    let reason = || "the health check \"ssh\" was ended by signal 9".to_owned();
    let all = [
        after_boot(&AfterBoot::Nothing { why: "the latest deployment waits for a reboot".into() }),
        after_boot(&AfterBoot::Confirmed { deployment: b(), checks: 0 }),
        after_boot(&AfterBoot::Confirmed { deployment: b(), checks: 2 }),
        after_boot(&AfterBoot::Failed { deployment: b(), reason: reason(), back_to: Some(a()) }),
        after_boot(&AfterBoot::Failed { deployment: b(), reason: reason(), back_to: None }),
        after_boot(&AfterBoot::FellBack { from: b(), to: a(), reason: reason() }),
        rolled_back(&RolledBack { from: b(), to: a(), runs_already: false, dry_run: true }),
        rolled_back(&RolledBack { from: b(), to: a(), runs_already: true, dry_run: false }),
        rolled_back(&RolledBack { from: b(), to: a(), runs_already: false, dry_run: false }),
        would_confirm(&WouldConfirm {
            deployment: b(),
            latest: true,
            on_trial: true,
            checks: vec!["ssh".to_owned(), "network".to_owned()],
        }),
        would_confirm(&WouldConfirm {
            deployment: a(),
            latest: false,
            on_trial: false,
            checks: Vec::new(),
        }),
        finalized(&Finalized::Carried { to: b() }),
        finalized(&Finalized::Refunded { tries: 3 }),
        finalized(&Finalized::Nothing),
    ];
    insta::assert_snapshot!(all.concat());
}
