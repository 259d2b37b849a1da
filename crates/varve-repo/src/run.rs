//! One function for each command.

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use jiff::Timestamp;
use serde_json::json;
use varve_build::{BuildOptions, BuildReport, Source};
use varve_publish::{
    InitOptions, Keep, KeyDirs, MadeDelta, Published, Repository, Role, RotateOptions,
    SignedRoleState,
};
use varve_sys::task::{Cancel, Progress, Silent};
use varve_term::{Columns, Exit, Shown, human, out};

use crate::answer;
use crate::cli::{Build, Cli, Command, Deltas, Global, Init, Prune, Publish, Rotate};

type Outcome = Result<Exit, Box<dyn Error>>;

pub(crate) fn run(cli: Cli, cancel: &Cancel) -> Outcome {
    let global = &cli.global;
    let progress: Box<dyn Progress> =
        if global.quiet { Box::new(Silent) } else { Box::new(Shown::new()) };
    let keys = key_dirs(global)?;
    let now = Timestamp::now();
    if let Command::Completions { shell } = cli.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "varve-repo", &mut script);
        out::print(&String::from_utf8_lossy(&script))?;
        return Ok(Exit::Done);
    }
    if let Command::Init(init) = &cli.command {
        return self::init(init, global, &keys, now);
    }
    let repository = Repository::open(&global.repo)?;
    match cli.command {
        Command::Init(_) | Command::Completions { .. } => Ok(Exit::Done),
        Command::Build(build) => {
            self::build(build, &repository, global, &keys, now, &*progress, cancel)
        }
        Command::Publish(publish) => {
            self::publish(&publish, &repository, global, &keys, now, &*progress, cancel)
        }
        Command::Delta { from, to } => {
            let _lock = repository.lock()?;
            let made = repository.make_deltas(&[from], &to, &*progress, cancel)?;
            let release = repository.offer(&to, &made, &keys, now)?;
            say(global, json!({ "release": release, "deltas": made }), || answer::deltas(&made))
        }
        Command::List => list(&repository, global, now),
        Command::Show { name } => {
            let record = repository.record(&name)?;
            let release = repository.list()?.into_iter().find(|release| release.name == name);
            let deltas = match &release {
                Some(release) => repository.deltas(release)?,
                None => Vec::new(),
            };
            let releases = repository.list()?;
            let value = json!({ "release": release, "record": record, "deltas": deltas });
            say(global, value, || {
                let mut text = answer::record(&record, release.as_ref());
                text.push_str(&answer::offered(&deltas, &releases));
                text
            })
        }
        Command::Diff { from, to, all } => {
            let diff = repository.diff(&from, &to)?;
            say(global, &diff, || answer::diff(&diff, all))
        }
        Command::Prune(prune) => self::prune(prune, &repository, global, &keys, now),
        Command::Check => {
            let report = repository.check(now, &*progress, cancel)?;
            say(global, &report, || answer::check(&report))?;
            Ok(if report.problems.is_empty() { Exit::Done } else { Exit::Untrusted })
        }
        Command::Rotate(rotate) => self::rotate(&rotate, &repository, global, &keys, now),
        Command::Refresh { roles, dry_run } => {
            let _lock = repository.lock()?;
            let before = repository.roles()?;
            let chosen = (!roles.is_empty()).then_some(&roles[..]);
            let after = repository.refresh(chosen, &keys, now, dry_run)?;
            let signed: Vec<_> =
                after.iter().filter(|role| !before.contains(role)).cloned().collect();
            say(global, json!({ "dry_run": dry_run, "signed": signed, "roles": after }), || {
                let verb = if dry_run { "Would sign" } else { "Signed" };
                format!("{verb}:\n{}", roles_table(&signed, now))
            })
        }
    }
}

/// Prints the answer in the form that was asked for.
fn say(global: &Global, value: impl serde::Serialize, text: impl FnOnce() -> String) -> Outcome {
    if global.json {
        out::print_json(&value)?;
    } else {
        out::print(&text())?;
    }
    Ok(Exit::Done)
}

/// Keys lie beside the repository, never in it: what lies in it is served.
fn key_dirs(global: &Global) -> Result<KeyDirs, Box<dyn Error>> {
    let online = match &global.keys {
        Some(keys) => keys.clone(),
        None => {
            let path = std::path::absolute(&global.repo)?;
            let path = path.canonicalize().unwrap_or(path);
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(".keys");
            path.with_file_name(name)
        }
    };
    let root = global.root_keys.clone().unwrap_or_else(|| online.join("root"));
    Ok(KeyDirs { root, online })
}

fn init(init: &Init, global: &Global, keys: &KeyDirs, now: Timestamp) -> Outcome {
    let mut options = InitOptions::default();
    for (at, role) in Role::ALL.into_iter().enumerate() {
        let of =
            |list: &[(Role, u32)]| list.iter().rev().find(|(r, _)| *r == role).map(|(_, n)| *n);
        let threshold = of(&init.thresholds).unwrap_or(1);
        options.roles[at].threshold = threshold;
        options.roles[at].keys = of(&init.key_counts).unwrap_or(threshold);
        if let Some(days) = of(&init.expires) {
            options.settings.set_days(role, days);
        }
    }
    let root = global.repo.join("metadata/1.root.json");
    if !init.dry_run {
        let repository = Repository::init(&global.repo, keys, &options, now)?;
        repository.roles()?;
    }
    let roles: Vec<_> = Role::ALL
        .into_iter()
        .zip(options.roles)
        .map(|(role, numbers)| {
            json!({
                "role": role,
                "keys": numbers.keys,
                "threshold": numbers.threshold,
                "expires_days": options.settings.days(role),
                "directory": keys.of(role),
            })
        })
        .collect();
    let value = json!({
        "dry_run": init.dry_run, "repository": global.repo, "root_of_trust": root, "roles": roles,
    });
    say(global, value, || {
        let mut table = Columns::new(&["ROLE", ">KEYS", ">MUST SIGN", ">LASTS", "KEYS IN"]);
        for (role, numbers) in Role::ALL.into_iter().zip(options.roles) {
            table.row([
                role.to_string(),
                numbers.keys.to_string(),
                numbers.threshold.to_string(),
                human::plural(options.settings.days(role).into(), "day", "days"),
                keys.of(role).display().to_string(),
            ]);
        }
        let verb = if init.dry_run { "Would make" } else { "Made" };
        format!(
            "{verb} the repository {}.\n\n{table}\nRoot of trust, for devices: {}\nKeep the root's keys offline: they are needed by `rotate` alone.\n",
            global.repo.display(),
            root.display(),
        )
    })
}

fn build(
    build: Build,
    repository: &Repository,
    global: &Global,
    keys: &KeyDirs,
    now: Timestamp,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Outcome {
    let source = open_source(&build.source, build.reference)?;
    let options = BuildOptions {
        architecture: build.architecture,
        notes: build.notes,
        level: build.level,
        threads: build.threads,
        ..BuildOptions::new(build.name.clone())
    };
    let dir = varve_sys::Dir::open(repository.path())?;
    let report = varve_build::build(source, &dir, &options, progress, cancel)?;
    let published = if build.publish {
        let _lock = repository.lock()?;
        let (name, channel) = (&build.name, &build.channel);
        let made = deltas(&build.deltas, repository, name, channel, progress, cancel)?;
        Some(repository.publish_with(name, channel, None, &made, keys, now, false)?)
    } else {
        None
    };
    let BuildReport { record, new_bytes, new_contents, reused_bytes, pack } = &report;
    let value = json!({
        "record": record, "new_bytes": new_bytes, "new_contents": new_contents,
        "reused_bytes": reused_bytes, "pack": pack, "published": published,
    });
    say(global, value, || answer::built(&report, published.as_ref()))
}

fn open_source(path: &Path, reference: Option<String>) -> Result<Source, Box<dyn Error>> {
    if path == Path::new("-") {
        let reader = Box::new(std::io::stdin().lock());
        return Ok(Source::Tar { reader, name: "standard input".into(), size: None });
    }
    Ok(match Source::open(path)? {
        Source::Oci { layout, .. } => Source::Oci { layout, reference },
        other => other,
    })
}

fn publish(
    publish: &Publish,
    repository: &Repository,
    global: &Global,
    keys: &KeyDirs,
    now: Timestamp,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Outcome {
    let _lock = repository.lock()?;
    let Publish { name, channel, sequence, deltas, dry_run } = publish;
    let mut release = repository.publish(name, channel, *sequence, keys, now, true)?;
    let mut made = Vec::new();
    if !dry_run {
        made = self::deltas(deltas, repository, name, channel, progress, cancel)?;
        release = repository.publish_with(name, channel, *sequence, &made, keys, now, false)?;
    }
    say(global, json!({ "dry_run": dry_run, "published": release, "deltas": made }), || {
        answer::published(&release, *dry_run) + &answer::deltas(&made)
    })
}

/// Makes the deltas that lead to a release that is about to be published.
fn deltas(
    wish: &Deltas,
    repository: &Repository,
    to: &varve_format::ReleaseName,
    channel: &str,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Vec<MadeDelta>, Box<dyn Error>> {
    let from = match (wish.no_deltas, &wish.delta_from[..]) {
        (true, _) => Vec::new(),
        (false, []) => repository.delta_bases(channel, wish.deltas)?,
        (false, named) => named.to_vec(),
    };
    Ok(repository.make_deltas(&from, to, progress, cancel)?)
}

fn list(repository: &Repository, global: &Global, now: Timestamp) -> Outcome {
    let releases = repository.list()?;
    let records: Vec<_> = releases.iter().map(|r| repository.record(&r.name).ok()).collect();
    let pending = repository.pending()?;
    let roles = repository.roles()?;
    let pending_names: Vec<_> = pending.iter().map(|record| &record.name).collect();
    let all: Vec<_> = releases
        .iter()
        .zip(&records)
        .map(|(release, record)| json!({ "release": release, "record": record }))
        .collect();
    say(global, json!({ "releases": all, "pending": pending_names, "roles": roles }), || {
        let mut text = String::new();
        let mut table = Columns::new(&[
            "RELEASE",
            "CHANNEL",
            ">SEQ",
            "PUBLISHED",
            ">SIZE",
            ">PATHS",
            ">DELTAS",
            "TITLE",
        ]);
        for (release, record) in releases.iter().zip(&records) {
            let deltas = repository.deltas(release).map(|deltas| deltas.len()).ok();
            table.row(row(release, record.as_ref(), deltas));
        }
        if table.is_empty() {
            text.push_str("No release is published yet.\n");
        } else {
            text.push_str(&table.to_string());
        }
        for record in &pending {
            text.push_str(&format!("built, not published: {}\n", record.name));
        }
        text.push_str(&format!("\n{}", roles_table(&roles, now)));
        text
    })
}

fn row(
    release: &Published,
    record: Option<&varve_format::release::ReleaseRecord>,
    deltas: Option<usize>,
) -> [String; 8] {
    let day = release.published.map_or_else(String::new, answer::day);
    let (size, paths, title) = record.map_or_else(
        || ("?".into(), "?".into(), "its record cannot be read".into()),
        |r| (human::bytes(r.totals.bytes), human::count(r.totals.paths), r.title.clone()),
    );
    let (name, sequence) = (release.name.to_string(), release.sequence.to_string());
    let deltas = deltas.map_or_else(|| "?".to_owned(), |count| count.to_string());
    [name, release.channel.clone(), sequence, day, size, paths, deltas, title]
}

fn roles_table(roles: &[SignedRoleState], now: Timestamp) -> String {
    let mut table = Columns::new(&["ROLE", ">VERSION", "VALID UNTIL", "LEFT"]);
    for role in roles {
        let left = role.expires.as_second() - now.as_second();
        let left = match left {
            ..=0 => "expired".to_owned(),
            left => human::duration(std::time::Duration::from_secs(left.unsigned_abs())),
        };
        table.row([
            role.role.to_string(),
            role.version.to_string(),
            answer::day(role.expires),
            left,
        ]);
    }
    table.to_string()
}

fn prune(
    prune: Prune,
    repository: &Repository,
    global: &Global,
    keys: &KeyDirs,
    now: Timestamp,
) -> Outcome {
    let _lock = repository.lock()?;
    let keep = match prune.keep {
        Some(count) => Keep::Newest(count),
        None => Keep::AllBut(prune.releases),
    };
    let pruned = repository.prune(&keep, keys, now, prune.dry_run)?;
    let value = json!({ "dry_run": prune.dry_run, "pruned": pruned, "bytes": pruned.bytes() });
    say(global, value, || answer::pruned(&pruned, prune.dry_run))
}

fn rotate(
    rotate: &Rotate,
    repository: &Repository,
    global: &Global,
    keys: &KeyDirs,
    now: Timestamp,
) -> Outcome {
    let _lock = repository.lock()?;
    let Rotate { role, key_count, threshold, lost, dry_run } = rotate;
    let options =
        RotateOptions { keys: *key_count, threshold: *threshold, lost: *lost, dry_run: *dry_run };
    let rotation = repository.rotate(*role, &options, keys, now)?;
    let directory: PathBuf = keys.of(*role);
    say(global, json!({ "dry_run": dry_run, "rotation": rotation }), || {
        if *dry_run {
            return format!("The {role} role can be rotated.\n");
        }
        let mut text = format!("The {role} role has new keys in {}:\n", directory.display());
        for key in &rotation.new_keys {
            text.push_str(&format!("  {}\n", &key[..16]));
        }
        text.push_str(&format!(
            "Devices follow by themselves.\n\n{}",
            roles_table(&rotation.roles, now)
        ));
        text
    })
}
