use varve_agent::plan::{DeltaUse, Fetch, Room, Write};
use varve_agent::rejected::Rejection;
use varve_format::ReleaseDigest;
use varve_format::deployment::{Layout, ReleaseRef};
use varve_rootfs::reconcile::Reconciled;

use super::*;
use crate::commands::upgrade::Newer;

fn a_plan() -> UpgradePlan {
    UpgradePlan {
        release: ReleaseRef {
            name: "debian-13.2".parse().unwrap(),
            digest: ReleaseDigest([2; 32]),
            sequence: 2,
        },
        title: "Debian GNU/Linux 13 (trixie)".to_owned(),
        notes: "Security updates of openssl and curl.".to_owned(),
        base: Some("debian-13.1".parse().unwrap()),
        deployment: "debian-13.2".parse().unwrap(),
        layout: Layout::Overlay,
        is_here: false,
        merge: vec!["debian-13.1".parse().unwrap(), "debian-13.0".parse().unwrap()],
        dropped_state: vec![varve_format::deployment::StateDir::new("/srv").unwrap()],
        conflicts: Vec::new(),
        fetch: Fetch {
            bytes: 31_234_567,
            packs: 27_000_000,
            seconds: 95,
            requests: 3,
            contents: 1400,
            here_already: 4_000_000,
            metadata_bytes: 700_000,
        },
        delta: Some(DeltaUse {
            from: "debian-13.1".to_owned(),
            bytes: 4_234_567,
            contents: 1380,
            memory: 58 << 20,
            cpu_milliseconds: 12_345,
        }),
        without_delta: vec!["parts of it need too much memory".to_owned()],
        write: Write { paths: 1710, linked: 12, copied: 3 },
        room: vec![Room {
            path: "/run/varve/physical".to_owned(),
            need: 82_000_000,
            free: 3_000_000_000,
            releasable: 0,
            reserve: 64 << 20,
            need_inodes: 1800,
            free_inodes: Some(412_345),
        }],
        max_download: None,
        metered: None,
    }
}

#[test]
fn plans() {
    let mut tight = a_plan();
    tight.room[0].free = 100_000_000;
    tight.room[0].free_inodes = None;
    tight.delta = None;
    tight.without_delta.clear();
    tight.merge.clear();
    tight.dropped_state.clear();
    let here = UpgradePlan { is_here: true, ..a_plan() };
    let text = [plan(&a_plan()), plan(&tight), plan(&here)].join("---\n");
    insta::assert_snapshot!(text);
}

fn failed() -> Rejection {
    Rejection {
        digest: ReleaseDigest([3; 32]),
        name: "debian-13.3".parse().unwrap(),
        sequence: 3,
        time: "2026-11-23T15:04:05Z".parse().unwrap(),
        reason: "it did not come up in 3 tries".to_owned(),
    }
}

#[test]
fn answers() {
    let up_to_date = Upgraded {
        up_to_date: true,
        plan: None,
        refused: None,
        done: None,
        passed_over: vec![failed()],
        warnings: vec!["cannot check the repository: http://a.example: timed out".to_owned()],
    };
    let outcome = |path: &str, outcome| Reconciled {
        path: varve_format::TreePath::new(path.as_bytes()).unwrap(),
        outcome,
    };
    let finished = Upgraded {
        up_to_date: false,
        plan: Some(a_plan()),
        refused: None,
        done: Some(Done {
            deployment: "debian-13.2".parse().unwrap(),
            release: "debian-13.2".to_owned(),
            fetched: 31_934_567,
            written: 79_000_000,
            reused: 4_000_000,
            files_verified: 1400,
            mended: 1,
            tries: 3,
            reconciled: vec![
                outcome("etc/hosts", Outcome::Merged),
                outcome("etc/ssh/sshd_config", Outcome::KeptBeside),
                outcome("etc/old", Outcome::KeptAlone),
                outcome("etc/motd", Outcome::StaysDeleted),
            ],
            switched_off: Vec::new(),
            collected: vec!["debian-13.0".to_owned()],
            without_delta: Vec::new(),
        }),
        passed_over: Vec::new(),
        warnings: Vec::new(),
    };
    let mut check = Checked {
        present: Some("debian-13.1".to_owned()),
        newer: Some(Newer {
            release: "debian-13.2".to_owned(),
            sequence: 2,
            channel: "stable".to_owned(),
        }),
        passed_over: Vec::new(),
        source: "http://a.example".to_owned(),
        expires: "2026-12-23T15:04:05Z".parse().unwrap(),
        clock_behind: true,
        warnings: Vec::new(),
    };
    let some = checked(&check);
    check.newer = None;
    check.clock_behind = false;
    let made_one = Made {
        deployment: "debian-13.1".parse().unwrap(),
        release: "debian-13.1".to_owned(),
        fetched: 190_000_000,
        config_installed: false,
    };
    let all = [upgraded(&up_to_date), done(&finished), some, checked(&check), made(&made_one)];
    insta::assert_snapshot!(all.join("---\n"));
}
