use proptest::prelude::*;

use super::*;

fn entry(name: &str, kind: LayerKind, title: &str, size: Option<u64>) -> Entry {
    Entry {
        name: name.parse().unwrap(),
        title: title.to_owned(),
        kind,
        created: 1_760_000_000,
        size,
        removable: kind != LayerKind::Base,
        off: false,
    }
}

fn menu(shared: &[&str]) -> Menu {
    let entries = vec![
        entry("games", LayerKind::Local, "what the children play", Some(120_000_000)),
        entry("drivers-for-the-projector-in-room-4", LayerKind::Extension, "", Some(3_400_000)),
        entry("debian-13.2", LayerKind::Update, "", Some(79_000_000)),
        entry("debian-13.1", LayerKind::Base, "", None),
    ];
    let mut menu = Menu::new(Place::Boot, "debian-13.2+games".parse().unwrap(), entries);
    menu.previous = Some("debian-13.1".parse().unwrap());
    menu.why = vec!["A key was held.".to_owned()];
    menu.shared = shared.iter().map(|path| (*path).to_owned()).collect();
    menu
}

fn shown(menu: &Menu, left: Option<u64>) -> String {
    menu.screen(left).join("\n")
}

fn names(names: &[&str]) -> Choice {
    Choice::Try(names.iter().map(|name| name.parse().unwrap()).collect())
}

#[test]
fn the_list() {
    insta::assert_snapshot!(shown(&menu(&[]), Some(30)));
}

#[test]
fn after_two_tries_and_nothing_to_go_back_to() {
    let mut menu = menu(&[]);
    menu.entries[0].off = true;
    menu.entries[1].off = true;
    menu.previous = None;
    menu.why = vec![
        "debian-13.2+games failed its trials.".to_owned(),
        "The last try was without games, drivers-for-the-projector-in-room-4.".to_owned(),
    ];
    assert_eq!(menu.press(Key::Escape), None);
    insta::assert_snapshot!(shown(&menu, Some(1)));
}

#[test]
fn two_hundred_layers_fit() {
    let mut menu = menu(&[]);
    let base = menu.entries.pop().unwrap();
    menu.entries = (0..200)
        .map(|n| {
            let mut layer = entry(&format!("layer-{n:03}"), LayerKind::Local, "", None);
            layer.off = n < 90;
            layer
        })
        .collect();
    menu.entries.push(base);
    insta::assert_snapshot!(shown(&menu, None));
}

#[test]
fn questions() {
    let mut menu = menu(&["/home", "/var"]);
    assert_eq!(menu.press(Key::TakeOff), None);
    insta::assert_snapshot!("saved_work", shown(&menu, Some(60)));
    assert_eq!(menu.press(Key::Find), None);
    insta::assert_snapshot!("search", shown(&menu, Some(60)));
}

#[test]
fn in_the_running_system() {
    let mut menu = menu(&[]);
    menu.place = Place::Running;
    menu.why = vec!["debian-13.2+games runs.".to_owned()];
    insta::assert_snapshot!(shown(&menu, None));
}

#[test]
fn one_key_tries_where_nothing_is_shared() {
    assert_eq!(menu(&[]).press(Key::TakeOff), Some(names(&["games"])));
    let base = ["games", "drivers-for-the-projector-in-room-4", "debian-13.2"];
    assert_eq!(menu(&[]).press(Key::OnlyBase), Some(names(&base)));
    assert_eq!(menu(&[]).press(Key::PutBack), Some(names(&[])));
    assert_eq!(menu(&[]).press(Key::Enter), Some(Choice::Usual));
    assert_eq!(menu(&[]).press(Key::Escape), Some(Choice::Previous));
}

#[test]
fn one_after_the_other_until_there_is_only_the_base() {
    let mut menu = menu(&[]);
    for count in 1..=3 {
        let Some(Choice::Try(off)) = menu.press(Key::TakeOff) else { panic!("no try") };
        assert_eq!(off.len(), count);
        // What the boot stage remembers of the last try.
        for entry in &mut menu.entries {
            entry.off = off.contains(&entry.name);
        }
        assert_eq!(menu.off(), off);
    }
    assert_eq!(menu.press(Key::TakeOff), None, "the base stays");
    assert!(shown(&menu, None).contains("All but the base is off already"));
    menu.entries.drain(..3);
    assert_eq!(menu.press(Key::OnlyBase), None);
    assert!(shown(&menu, None).contains("There is only the base"));
}

#[test]
fn a_question_is_answered_by_enter_alone() {
    let mut menu = menu(&["/home"]);
    assert_eq!(menu.press(Key::TakeOff), None);
    // A key that repeats itself is no answer.
    assert_eq!(menu.press(Key::TakeOff), None);
    assert_eq!(menu.press(Key::Escape), None);
    assert_eq!(menu.press(Key::Enter), Some(Choice::Usual), "the question is over");
    assert_eq!(menu.press(Key::OnlyBase), None);
    let Some(Choice::Try(off)) = menu.press(Key::Enter) else { panic!("no try") };
    assert_eq!(off.len(), 3);
    assert_eq!(menu.press(Key::Find), None);
    assert_eq!(menu.press(Key::Enter), Some(Choice::Find));
}

fn key() -> impl Strategy<Value = Key> {
    use Key::*;
    prop::sample::select(vec![TakeOff, OnlyBase, Find, PutBack, Enter, Escape])
}

proptest! {
    /// Whatever is pressed and whatever is in the list: the screen fits, the base is
    /// never left out, and only what is in the list is.
    #[test]
    fn it_always_fits(
        keys in proptest::collection::vec(key(), 0..20),
        titles in proptest::collection::vec("\\PC{0,90}", 0..30),
        why in proptest::collection::vec("\\PC{0,200}", 0..6),
        shared in proptest::collection::vec("/[a-z]{1,30}", 0..9),
        off in any::<u32>(),
    ) {
        let mut menu = menu(&[]);
        let base = menu.entries.pop().unwrap();
        menu.entries = titles.iter().enumerate().map(|(n, title)| {
            let mut layer = entry(&format!("l{n}"), LayerKind::Local, title, Some(u64::MAX));
            layer.off = off >> n & 1 == 1;
            layer
        }).collect();
        menu.entries.push(base);
        (menu.why, menu.shared) = (why, shared);
        for key in keys {
            if let Some(Choice::Try(off)) = menu.press(key) {
                prop_assert!(off.iter().all(|name| name.as_str() != "debian-13.1"));
                prop_assert!(off.len() < menu.entries.len());
            }
            let screen = menu.screen(Some(u64::MAX));
            prop_assert!(screen.len() <= LINES, "{} lines", screen.len());
            prop_assert!(screen.iter().all(|line| line.len() <= COLUMNS && line.is_ascii()));
        }
    }
}
