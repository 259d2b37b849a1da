//! Measures staging, verifying and merging on two real trees, beside `cp -al`.
//!
//! `cargo run --release -p varve-rootfs --example measure -- OLD_DIR NEW_DIR EMPTY_DIR`,
//! all on one file system. Each line: what, seconds by the clock, seconds of CPU (of which
//! a busy machine takes nothing away). `cp -al` copies the old tree.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use varve_format::deployment::{Layout, RootMode};
use varve_format::manifest::Manifest;
use varve_format::tree::Kind;
use varve_rootfs::layout::{self, Request, SourceCheck};
use varve_rootfs::merge::merge;
use varve_rootfs::stage::Details;
use varve_rootfs::verify::{Contents, Level, verify};
use varve_rootfs::{Deployment, Store};
use varve_sys::task::{Cancel, Silent};
use varve_sys::{Dir, durable};
use varve_testkit::tree::scan;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [memory, root] = &arguments[..]
        && memory == "memory"
    {
        return measure_memory(root);
    }
    let [old, new, work] = &arguments[..] else {
        return Err("usage: measure OLD_DIR NEW_DIR EMPTY_DIR".into());
    };
    let (old_dir, new_dir) = (Dir::open(old)?, Dir::open(new)?);
    let (old, new) = (scan(&old_dir), scan(&new_dir));
    for layout in [Layout::HardLink, Layout::Overlay] {
        let root = Path::new(work).join(layout.to_string());
        std::fs::create_dir_all(&root)?;
        let store = Store::create(&Dir::open(&root)?)?;
        println!("--- {layout}: {} and {} paths", old.entries().len(), new.entries().len());
        upgrade(&store, "old", &old, &old_dir, layout)?;
        let base = store.deployments()?.items.remove(0);
        upgrade(&store, "new", &new, &new_dir, layout)?;
        let deployment = store.deployment(&"new".parse()?)?;
        for (what, contents) in
            [("verify structure", Contents::Nothing), ("verify all", Contents::Everything)]
        {
            let dirs = store.stack_dirs(&deployment.record.stack)?;
            let report = timed(what, || verify(dirs, &new, contents, &Silent, &Cancel::new()))?;
            assert!(report.is_clean(), "{:?}", report.differences);
        }
        let tree = store.stack_dirs(&base.record.stack)?.remove(0);
        durable::sync_file_system(store.dir())?;
        timed("cp -al", || {
            let copy = root.join("copy");
            std::process::Command::new("cp").arg("-al").arg(tree.path()).arg(&copy).status()
        })?;
        if layout == Layout::Overlay {
            durable::sync_file_system(store.dir())?;
            let name = deployment.name();
            let merged = timed("merge, verified and synced", || {
                merge(&store, name, 0..2, 0, Level::Structure, &Silent, &Cancel::new())
            })?;
            println!("{:?}", merged.counts);
        }
    }
    Ok(())
}

/// `measure memory EMPTY_DIR/hard-link`, after a run: what staging an upgrade again and
/// verifying it takes, at its peak.
fn measure_memory(root: &str) -> Result<(), Box<dyn std::error::Error>> {
    let store = Store::open(&Dir::open(root)?)?;
    let manifest = store.manifest(&"new".parse()?)?;
    let (base, name) = (store.deployment(&"old".parse()?)?, "again".parse()?);
    let (silent, cancel) = (Silent, Cancel::new());
    let request = Request {
        store: &store,
        base: Some(&base),
        name: &name,
        manifest: &manifest,
        check: SourceCheck::Contents,
        progress: &silent,
        cancel: &cancel,
    };
    let layout = layout::of(base.record.stack.layout());
    let plan = layout.plan(&request)?;
    let staged = layout.stage(&store, plan, &manifest, &silent, &cancel)?;
    staged.verify(Level::Full, &silent, &cancel)?.abandon()?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    status.lines().filter(|line| line.starts_with("VmHWM")).for_each(|line| println!("{line}"));
    Ok(())
}

fn upgrade(
    store: &Store,
    name: &str,
    manifest: &Manifest,
    source: &Dir,
    layout: Layout,
) -> Result<Deployment, Box<dyn std::error::Error>> {
    let base = store.deployments()?.items.pop();
    let name = name.parse()?;
    let request = Request {
        store,
        base: base.as_ref(),
        name: &name,
        manifest,
        check: SourceCheck::Trust,
        progress: &Silent,
        cancel: &Cancel::new(),
    };
    let plan = timed("plan", || layout::of(layout).plan(&request))?;
    let paths: HashMap<_, _> = manifest
        .entries()
        .iter()
        .filter_map(|entry| match entry.kind {
            Kind::Regular { digest, .. } => Some((digest, &entry.path)),
            _ => None,
        })
        .collect();
    for needed in &plan.fetch {
        let file = source.open_file(paths[&needed.digest].as_path())?;
        store.incoming().create_file(needed.digest.to_hex(), 0o644)?.copy_from(&file)?;
    }
    durable::sync_file_system(store.dir())?;
    println!(
        "{name}: {} paths written, {} linked, {} copied, {} fetched, {} whiteouts, {} bytes to write",
        plan.paths,
        plan.linked,
        plan.copied,
        plan.fetch.len(),
        plan.whiteouts,
        plan.write_bytes
    );
    let (silent, cancel) = (Silent, Cancel::new());
    let staged =
        timed("stage", || layout::of(layout).stage(store, plan, manifest, &silent, &cancel))?;
    let verified =
        timed("verify new contents", || staged.verify(Level::NewContents, &silent, &cancel))?;
    let details = Details {
        own: Vec::new(),
        title: String::new(),
        created: 0,
        root_mode: RootMode::ReadOnly,
        release: None,
        kernel: None,
        state: Vec::new(),
    };
    Ok(timed("commit (sync included)", || verified.commit(details))?)
}

fn timed<T, E>(what: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let result = work();
    let (elapsed, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    println!("{what:30} {elapsed:.3} {cpu:.2}");
    result
}

/// User and system time of this process and of the children that it waited for: fields
/// 14 to 17 of proc_pid_stat(5), in hundredths of a second.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("procfs is mounted");
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(4);
    ticks.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}
