//! A power cut after every change of staging, promoting, confirming, merging, collecting
//! and carrying state: what boots is a whole deployment, and the next run finishes.
//!
//! Each test also leaves out every sync in turn, and says which of them it guards: a
//! test that passes without the syncs would prove nothing.

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use varve_boot::{Inputs, OnDisk, Wishes, decide, transition};
use varve_format::DeploymentName;
use varve_format::deployment::{Layout, RootMode, StateDir, StateMode, StatePath};
use varve_format::selection::Selection;
use varve_format::tree::{Kind, Metadata};
use varve_rootfs::collect::{self, Keep};
use varve_rootfs::layout::{self, Request, SourceCheck};
use varve_rootfs::merge::merge;
use varve_rootfs::stage::{self, Details};
use varve_rootfs::verify::{Contents, Level, verify};
use varve_rootfs::{Deployment, Store, state};
use varve_sys::task::{Cancel, Silent};
use varve_sys::{Dir, durable};
use varve_testkit::crash::{self, Image, Recording, Survival};
use varve_testkit::tree::{Node, Tree};

type Check = Result<(), String>;

/// `a` and `b` are the names of directories that can hold state.
fn release(files: &[(&[u8], &[u8])]) -> Tree {
    let meta = Metadata { mode: 0o755, ..Metadata::default() };
    let mut nodes = vec![(vec![0], Node::Directory(meta.clone()))];
    nodes.push((vec![1], Node::Directory(meta.clone())));
    for (place, bytes) in files {
        nodes.push((place.to_vec(), Node::File(bytes.to_vec(), meta.clone())));
    }
    nodes.push((vec![4], Node::Special(Kind::Fifo, meta.clone())));
    nodes.push((vec![1, 4], Node::Symlink(b"../a".to_vec(), meta)));
    Tree::build(&nodes)
}

fn first() -> Tree {
    release(&[(&[0, 2], b"config 1"), (&[1, 2], b"stays"), (&[1, 3], b"goes"), (&[1, 5], b"v1")])
}

fn second() -> Tree {
    release(&[(&[0, 2], b"config 2"), (&[1, 2], b"stays"), (&[2, 3], b"comes"), (&[1, 5], b"v2")])
}

fn name(text: &str) -> DeploymentName {
    text.parse().unwrap()
}

fn open(root: &Path) -> Store {
    Store::open(&Dir::open(root).unwrap()).unwrap()
}

fn selection(store: &Store) -> Result<Selection, String> {
    let bytes = store.boot().read("selection", 4096).map_err(|error| error.to_string())?;
    Selection::parse(&bytes).map_err(|error| error.to_string())
}

fn select(store: &Store, selection: &Selection) {
    let text = selection.to_text();
    durable::replace_file(store.boot(), "selection", text.as_bytes(), 0o644).unwrap();
}

/// Fetches as a fetch does, stages, verifies and commits; does nothing when it is there.
fn staged(store: &Store, called: &str, tree: &Tree, layout: Layout) -> Deployment {
    if let Ok(here) = store.deployment(&name(called)) {
        return here;
    }
    let deployments = store.deployments().unwrap();
    let (called, cancel) = (name(called), Cancel::new());
    let request = Request {
        store,
        base: deployments.items.last(),
        name: &called,
        manifest: &tree.manifest,
        check: SourceCheck::Trust,
        progress: &Silent,
        cancel: &cancel,
    };
    let plan = layout::of(layout).plan(&request).unwrap();
    for needed in &plan.fetch {
        let temporary = format!(".{}.new", needed.digest);
        let incoming = store.incoming();
        incoming.remove_all(&temporary).unwrap();
        let bytes = &tree.contents[&needed.digest];
        incoming.create_file(&temporary, 0o600).unwrap().write_all(bytes).unwrap();
        durable::sync_file_system(incoming).unwrap();
        incoming.rename_over(&temporary, incoming, needed.digest.to_hex()).unwrap();
    }
    let etc =
        StatePath { path: StateDir::new("/a").unwrap(), mode: StateMode::Versioned, fresh: false };
    let details = Details {
        own: Vec::new(),
        title: String::new(),
        created: 1_760_000_000,
        root_mode: RootMode::ReadOnly,
        release: None,
        kernel: None,
        state: vec![etc],
    };
    let staged = layout::of(layout).stage(store, plan, &tree.manifest, &Silent, &cancel).unwrap();
    staged.verify(Level::Full, &Silent, &cancel).unwrap().commit(details).unwrap()
}

/// A device that runs its first release, confirmed, with a change of its user.
fn device(layout: Layout) -> tempfile::TempDir {
    let folder = crash::scratch();
    let store = Store::create(&Dir::open(folder.path()).unwrap()).unwrap();
    let first = staged(&store, "first", &first(), layout);
    select(&store, &transition::promote(None, first.name(), None).unwrap());
    store.mark_confirmed(first.name()).unwrap();
    let upper = store.state().open_dir("versioned/first/a/upper").unwrap();
    upper.create_file("mine", 0o644).unwrap().write_all(b"the user's").unwrap();
    folder
}

fn upgrade(store: &Store, layout: Layout) {
    stage::sweep(store).unwrap();
    let tree = second();
    let second = staged(store, "second", &tree, layout);
    let current = selection(store).unwrap();
    if current.latest != *second.name() {
        let first = store.deployment(&name("first")).unwrap();
        state::carry(store, &first.record, &second.record, &tree.manifest).unwrap();
        select(store, &transition::promote(Some(&current), second.name(), Some(3)).unwrap());
    }
}

fn confirm(store: &Store) {
    if let Some(good) = transition::confirm(&selection(store).unwrap(), &name("second")).unwrap() {
        select(store, &good);
    }
    store.mark_confirmed(&name("second")).unwrap();
}

fn merge_second(store: &Store) {
    stage::sweep(store).unwrap();
    let layers = store.deployment(&name("second")).unwrap().record.stack.layers().len();
    if layers > 1 {
        let cancel = Cancel::new();
        merge(store, &name("second"), 0..layers, 1, Level::Full, &Silent, &cancel).unwrap();
    }
}

fn collect_first(store: &Store) {
    stage::sweep(store).unwrap();
    let current = selection(store).unwrap();
    if let Some(alone) = transition::forget_previous(&current, &name("first")) {
        select(store, &alone);
    }
    let keep = Keep { newest: 1, incoming: Some(BTreeSet::new()), ..Keep::default() };
    let plan = collect::plan(store, &keep).unwrap();
    collect::execute(store, &plan).unwrap();
}

/// What the boot stage would choose.
fn boots(store: &Store) -> Result<DeploymentName, String> {
    let deployments = store.deployments().map_err(|error| error.to_string())?;
    if let Some(strange) = deployments.strange.first() {
        return Err(format!("{}: {}", strange.path, strange.why));
    }
    let on_disk: Vec<OnDisk> = deployments
        .items
        .iter()
        .map(|deployment| OnDisk {
            name: deployment.name().clone(),
            number: deployment.record.number,
            confirmed: deployment.confirmed,
        })
        .collect();
    let current = selection(store)?;
    let inputs = Inputs {
        selection: Ok(&current),
        on_disk: &on_disk,
        wishes: &Wishes::default(),
        key_held: false,
        wanted: None,
        failed: &[],
    };
    let decision = decide(&inputs).map_err(|passed| format!("nothing boots: {passed:?}"))?;
    if let Some(passed) = decision.passed_over.first() {
        return Err(passed.to_string());
    }
    Ok(decision.deployment)
}

/// A deployment is all that its manifest says, and has the user's change.
fn is_whole(store: &Store, which: &DeploymentName) -> Check {
    let text = |error: &dyn std::fmt::Display| format!("{which}: {error}");
    let deployment = store.deployment(which).map_err(|error| text(&error))?;
    let manifest = store.manifest(which).map_err(|error| text(&error))?;
    let layers = store.stack_dirs(&deployment.record.stack).map_err(|error| text(&error))?;
    let report = verify(layers, &manifest, Contents::Everything, &Silent, &Cancel::new())
        .map_err(|error| text(&error))?;
    if !report.is_clean() {
        return Err(format!("{which} differs: {:?}", report.differences.first()));
    }
    let mine = store.state().read(format!("versioned/{which}/a/upper/mine"), 100);
    match mine {
        Ok(bytes) if bytes == b"the user's" => Ok(()),
        other => Err(format!("{which}: the user's change is gone: {other:?}")),
    }
}

/// What has to hold on the disk `image`; then the work is done again, and done.
fn judge(image: &Image, again: &dyn Fn(&Store), ends_with: &str) -> Check {
    let folder = crash::scratch();
    image.materialise(folder.path());
    let store = Store::open(&Dir::open(folder.path()).unwrap()).map_err(|e| e.to_string())?;
    is_whole(&store, &boots(&store)?)?;
    let previous = selection(&store)?.previous;
    if let Some(previous) = previous {
        is_whole(&store, &previous)?;
    }
    again(&store);
    let boots = boots(&store)?;
    if boots != name(ends_with) {
        return Err(format!("{boots} boots in the end"));
    }
    is_whole(&store, &boots)?;
    // Nothing is left that no record names.
    let swept = stage::sweep(&store).map_err(|error| error.to_string())?;
    if !swept.removed.is_empty() || !swept.strange.is_empty() {
        return Err(format!("left behind: {:?} {:?}", swept.removed, swept.strange));
    }
    Ok(())
}

/// Cuts the power after each change of `work` on a device that `prepare` made, then
/// leaves out each sync in turn. `guarded` is how many syncs must be seen when missing; the rest
/// only hastens what a later one makes durable as well.
fn cut_everywhere(
    what: &str,
    layout: Layout,
    prepare: &[&dyn Fn(&Store)],
    work: &dyn Fn(&Store),
    ends_with: &str,
    guarded: usize,
) {
    if !support::is_root(what) {
        return;
    }
    let folder = device(layout);
    let store = open(folder.path());
    for step in prepare {
        step(&store);
    }
    let (recording, ()) = crash::record(folder.path(), || work(&store));
    let states = recording.each_state(2, |cut, survival, image| {
        if let Err(wrong) = judge(image, work, ends_with) {
            let last = cut.checked_sub(1).map(|at| recording.event(at));
            panic!("{what}: cut after {cut} changes ({last:?}), {survival:?}: {wrong}");
        }
    });
    let syncs = recording.syncs();
    // What a disk without a sync does to the work is expected to go wrong, loudly.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let caught = syncs.iter().filter(|&&at| is_caught(&recording, at, work, ends_with)).count();
    std::panic::set_hook(hook);
    println!(
        "{what}: {} changes, {states} states, {} syncs of which {caught} are guarded",
        recording.len(),
        syncs.len()
    );
    assert!(caught >= guarded, "{what}: only {caught} of {} syncs are guarded", syncs.len());
}

/// Whether some state that a disk could leave without this sync is found to be wrong.
fn is_caught(recording: &Recording, sync: usize, work: &dyn Fn(&Store), ends_with: &str) -> bool {
    let without = recording.without_sync(sync);
    // What is wrong shows between this sync and the next few changes, or at the end.
    let cuts = (sync + 1..(sync + 12).min(without.len())).chain([without.len()]);
    for cut in cuts {
        let certain = [Survival::NamesOnly, Survival::SyncedOnly];
        for survival in certain.into_iter().chain((0..6).map(Survival::Some)) {
            let image = without.image(cut, survival);
            let wrong = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                judge(&image, work, ends_with)
            }));
            if !matches!(wrong, Ok(Ok(()))) {
                return true;
            }
            // At the end all must be durable: the work was reported as done.
            if certain.contains(&survival)
                && cut == without.len()
                && image != recording.image(cut, survival)
            {
                return true;
            }
        }
    }
    let event = recording.event(sync);
    println!("  not guarded: {event:?}");
    false
}

#[test]
fn upgrade_overlay() {
    let work = |store: &Store| upgrade(store, Layout::Overlay);
    cut_everywhere("upgrade, overlay", Layout::Overlay, &[], &work, "second", 9);
}

#[test]
fn upgrade_hard_link() {
    let work = |store: &Store| upgrade(store, Layout::HardLink);
    cut_everywhere("upgrade, hard link", Layout::HardLink, &[], &work, "second", 9);
}

#[test]
fn upgrade_from_overlay_to_hard_link() {
    let work = |store: &Store| upgrade(store, Layout::HardLink);
    cut_everywhere("upgrade to hard links", Layout::Overlay, &[], &work, "second", 9);
}

#[test]
fn confirming() {
    let before = |store: &Store| upgrade(store, Layout::Overlay);
    cut_everywhere("confirm", Layout::Overlay, &[&before], &confirm, "second", 3);
}

#[test]
fn rolling_back() {
    let before = |store: &Store| upgrade(store, Layout::Overlay);
    let work = |store: &Store| {
        let current = selection(store).unwrap();
        if current.latest == name("second") {
            select(store, &transition::roll_back(&current).unwrap());
        }
    };
    cut_everywhere("roll back", Layout::Overlay, &[&before], &work, "first", 2);
}

#[test]
fn merging() {
    let before = |store: &Store| upgrade(store, Layout::Overlay);
    cut_everywhere("merge", Layout::Overlay, &[&before, &confirm], &merge_second, "second", 4);
}

#[test]
fn collecting() {
    let before = |store: &Store| upgrade(store, Layout::HardLink);
    let prepare: [&dyn Fn(&Store); 2] = [&before, &confirm];
    cut_everywhere("collect", Layout::HardLink, &prepare, &collect_first, "second", 3);
}
