use varve_agent::layer::check::Problem;
use varve_format::deployment::LayerKind;
use varve_rootfs::space::Cost;

use super::*;

fn layer(name: &str, kind: LayerKind, place: Place) -> LayerStatus {
    LayerStatus {
        name: name.parse().unwrap(),
        title: if kind == LayerKind::Local {
            "Games for the school".to_owned()
        } else {
            String::new()
        },
        kind,
        created: "2026-11-23T14:00:00Z".parse().unwrap(),
        made_by: "add games.tar.xz".to_owned(),
        signed_by: (kind == LayerKind::Extension)
            .then_some(varve_format::layer_file::LayerKey([7; 32])),
        release: None,
        place,
        cost: Cost { total: 12_345_678, alone: 2_000_000 },
        deployments: vec!["debian-13.2".parse().unwrap(), "debian-13.1".parse().unwrap()],
    }
}

#[test]
fn lists() {
    let off = Place::Off { why: "there would be no /sbin/init".to_owned() };
    let layers = [
        layer("games", LayerKind::Local, Place::On),
        layer("broken", LayerKind::Extension, off),
        layer("debian-13.2", LayerKind::Update, Place::Release),
        layer("old", LayerKind::Local, Place::Elsewhere { removed: true }),
    ];
    let path = |text: &str| varve_format::TreePath::new(text.as_bytes()).unwrap();
    let diff = [
        DiffEntry { path: path("usr/games"), what: What::Added },
        DiffEntry { path: path("usr/bin/vi"), what: What::Removed },
    ];
    insta::assert_snapshot!([list(&layers), one(&layers[0]), super::diff(&diff)].join("---\n"));
}

#[test]
fn files() {
    let key = varve_format::layer_file::LayerKey([7; 32]);
    let mut given = Exported {
        layer: "games".parse().unwrap(),
        file: "/media/stick/games.varve".into(),
        bytes: 1_234_567,
        paths: 12,
        key,
        new_key: true,
    };
    let first = exported(&given);
    given.new_key = false;
    let taken = Imported {
        changed: Changed {
            dry_run: false,
            deployment: Some("debian-13.2+5".parse().unwrap()),
            layer: Some("games".parse().unwrap()),
            before: Vec::new(),
            after: vec![OwnLayer::on("games".parse().unwrap())],
            switched_off: Vec::new(),
            reconciled: Vec::new(),
            tries: 3,
        },
        paths: 12,
        bytes: 3_456_789,
        key,
        made_on: None,
        other_release: true,
    };
    let other = one(&layer("broken", LayerKind::Extension, Place::On));
    insta::assert_snapshot!([first, exported(&given), imported(&taken), other].join("---\n"));
}

#[test]
fn changes() {
    let own = |name: &str, on| OwnLayer { on, ..OwnLayer::on(name.parse().unwrap()) };
    let plain = Changed {
        dry_run: false,
        deployment: Some("debian-13.2.2".parse().unwrap()),
        layer: Some("games".parse().unwrap()),
        before: Vec::new(),
        after: vec![own("games", true), own("broken", false)],
        switched_off: vec![SwitchedOff {
            layer: "broken".parse().unwrap(),
            problem: Problem::NoLibrary {
                program: "/sbin/init".to_owned(),
                library: "libc.so.6".to_owned(),
            },
        }],
        reconciled: Vec::new(),
        tries: 3,
    };
    let dry = Changed { dry_run: true, deployment: None, ..plain.clone() };
    let package = varve_agent::layer::Package {
        name: "hello".to_owned(),
        version: "2.10-3".to_owned(),
        scripts_not_run: vec!["postinst".to_owned()],
        registered: true,
    };
    let added = Added { changed: plain.clone(), paths: 12, bytes: 53_000, packages: vec![package] };
    let texts = [changed(&plain), changed(&dry), super::added(&added)];
    insta::assert_snapshot!(texts.join("---\n"));
}
