//! The real program on a real directory repository: what is printed, the exit codes, and
//! the JSON that the operator's guide documents.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use jiff::Timestamp;
use varve_publish::{InitOptions, KeyDirs, Repository};
use varve_sys::Dir;
use varve_sys::task::{Cancel, Silent};

struct Lab {
    folder: tempfile::TempDir,
    repository: Repository,
    keys: KeyDirs,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyDirs::below(&folder.path().join("keys"));
        fs::create_dir_all(folder.path().join("keys")).unwrap();
        let path = folder.path().join("repository");
        let repository =
            Repository::init(&path, &keys, &InitOptions::default(), Timestamp::now()).unwrap();
        fs::create_dir_all(folder.path().join("disk")).unwrap();
        for dir in ["etc", "var", "usr/sbin", "usr/lib"] {
            fs::create_dir_all(folder.path().join("tree").join(dir)).unwrap();
        }
        let lab = Self { folder, repository, keys };
        lab.write("tree/usr/sbin/init", "#!/bin/sh\n");
        lab.write(
            "varve.toml",
            &format!(
                "sources = [{:?}]\n[[state]]\npath = \"/etc\"\nmode = \"versioned\"\n",
                lab.path("repository")
            ),
        );
        lab
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap();
    }

    fn publish(&self, name: &str) {
        self.write("tree/usr/lib/release", &format!("{name}\n"));
        let source = varve_build::Source::open(&self.path("tree")).unwrap();
        let options = varve_build::BuildOptions::new(name.parse().unwrap());
        let repo = Dir::open(self.path("repository")).unwrap();
        varve_build::build(source, &repo, &options, &Silent, &Cancel::new()).unwrap();
        let name = name.parse().unwrap();
        let now = Timestamp::now();
        self.repository.publish(&name, "stable", None, &self.keys, now, false).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_varve"));
        command.arg("--root").arg(self.path("disk"));
        command.arg("--config").arg(self.path("varve.toml")).args(args);
        command.env_clear().env("PATH", "/usr/bin:/bin");
        command
    }

    fn run(&self, args: &[&str]) -> Said {
        Said::of(self.command(args).output().unwrap(), self.folder.path())
    }

    fn init(&self) -> Said {
        let (source, root) =
            (self.path("repository"), self.path("repository/metadata/1.root.json"));
        let mut command = self.command(&["--quiet", "init", "--source"]);
        command.arg(source).arg("--trust-root").arg(root);
        Said::of(command.output().unwrap(), self.folder.path())
    }

    fn json(&self, args: &[&str]) -> (i32, serde_json::Value) {
        let said = self.run(&[&["--json", "--quiet"], args].concat());
        let value =
            serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
        (said.code, value)
    }
}

/// What a run printed, with what differs from run to run made the same.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn of(output: Output, folder: &Path) -> Self {
        let text = |bytes: &[u8]| {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            text.replace(&folder.display().to_string(), "LAB")
        };
        let code = output.status.code().expect("it was not killed");
        Self { code, out: text(&output.stdout), err: text(&output.stderr) }
    }
}

#[test]
fn a_device_in_commands() {
    let lab = Lab::new();
    lab.publish("r1");
    let said = lab.init();
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.starts_with("r1 is installed as deployment r1 and boots next"), "{said:?}");
    let said = lab.run(&["check"]);
    assert_eq!((said.code, said.out.as_str()), (3, "Up to date: r1 is the newest there is.\n"));
    let said = lab.run(&["upgrade"]);
    assert_eq!((said.code, said.out.as_str()), (0, "Up to date: nothing was changed.\n"));

    lab.publish("r2");
    let said = lab.run(&["check"]);
    assert_eq!(said.code, 0);
    assert_eq!(said.out, "r2 is available in channel \"stable\"; r1 is here.\n");
    let said = lab.run(&["upgrade", "--dry-run"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("To r2, layout overlay\n  fetch "), "{said:?}");
    assert!(said.out.trim_end().ends_with(": fits"), "{said:?}");

    let said = lab.run(&["upgrade"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.starts_with("r2 is ready as deployment r2: "), "{said:?}");
    assert!(said.err.contains("fetching: ") && said.err.contains("verifying: "), "{said:?}");
    let said = lab.run(&["status"]);
    assert!(said.out.contains("r2          r2       overlay"), "{said:?}");
    assert!(said.out.contains("boots next, on trial (3 left), not confirmed"), "{said:?}");
    assert_eq!(lab.run(&["confirm"]).out, "r2 is confirmed: it boots from now on.\n");
    assert_eq!(lab.run(&["pin", "r1"]).out, "r1 is pinned.\n");
    assert_eq!(lab.run(&["fsck"]).code, 0);
    let said = lab.run(&["rollback", "--dry-run"]);
    assert_eq!(said.out, "r1 would boot in place of r2.\n");
    let said = lab.run(&["rollback"]);
    assert_eq!(said.out, "r1 boots next in place of r2. Reboot when it suits you.\n");
    let said = lab.run(&["upgrade"]);
    assert_eq!(
        said.out,
        "Up to date: nothing was changed.\n\
         r2 is newer, and is not tried again by itself: rolled back by the user.\n"
    );
    assert_eq!(lab.run(&["collect", "--dry-run"]).out, "There is nothing to delete.\n");
    let said = lab.run(&["merge", "--now", "r2"]);
    assert_eq!(said.out, "r2: r2, r1 became r2.merged.\n", "{said:?}");
    let said = lab.run(&["history", "--last", "3"]);
    let events: Vec<_> = said.out.lines().map(|line| &line[18..]).collect();
    assert_eq!(events[..2], ["r1 pinned", "back from r2 to r1: rolled back by the user"]);
    let said = lab.run(&["ps"]);
    assert_eq!((said.code, said.out.as_str()), (0, "No process stands on a deployment.\n"));
}

/// The fields that the operator's guide promises. Numbers and times are not held.
#[test]
fn json_has_the_documented_fields() {
    fn shape(value: &serde_json::Value, path: &str, out: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                map.iter().for_each(|(key, value)| shape(value, &format!("{path}.{key}"), out));
            }
            serde_json::Value::Array(list) => match list.first() {
                Some(first) => shape(first, &format!("{path}[]"), out),
                None => out.push(format!("{path}: []")),
            },
            serde_json::Value::String(_) => out.push(format!("{path}: text")),
            serde_json::Value::Number(_) => out.push(format!("{path}: number")),
            serde_json::Value::Bool(_) => out.push(format!("{path}: bool")),
            serde_json::Value::Null => out.push(format!("{path}: none")),
        }
    }
    let lab = Lab::new();
    lab.publish("r1");
    lab.init();
    lab.publish("r2");
    let mut text = String::new();
    for (args, code) in [
        (&["check"][..], 0),
        (&["upgrade", "--dry-run"], 0),
        (&["upgrade"], 0),
        (&["upgrade", "--to", "r9"], 4),
        (&["status"], 0),
        (&["status", "--space"], 0),
        (&["confirm"], 0),
        (&["pin", "r1"], 0),
        (&["collect", "--dry-run"], 0),
        (&["merge"], 0),
        (&["rollback"], 0),
        (&["fsck"], 0),
        (&["history"], 0),
        (&["ps"], 0),
        (&["finalize"], 0),
    ] {
        let (got, value) = lab.json(args);
        assert_eq!(got, code, "{args:?}: {value:#}");
        let mut lines = Vec::new();
        shape(&value, "", &mut lines);
        text.push_str(&format!("varve {} --json\n  {}\n", args.join(" "), lines.join("\n  ")));
    }
    insta::assert_snapshot!(text);
}

/// Each refusal: the whole of what its user sees, and the exit code.
#[test]
fn refusals() {
    let lab = Lab::new();
    let mut text = String::new();
    let mut row = |what: &str, said: Said| {
        assert_eq!(said.out, "", "{what}");
        text.push_str(&format!("== {what} (exit code {})\n{}\n", said.code, said.err));
    };
    row("no device", lab.run(&["status"]));
    row("nothing published", lab.init());
    lab.publish("r1");
    assert_eq!(lab.init().code, 0);
    row("a device is there", lab.init());
    row("no previous", lab.run(&["rollback"]));
    row("no such release", lab.run(&["upgrade", "--to", "r7"]));
    row("no such deployment", lab.run(&["pin", "r7"]));
    row("not running", lab.run(&["confirm", "--after-boot"]));
    row("no source there", lab.run(&["check", "--source", "/does/not/exist"]));
    row("a source of no kind", lab.run(&["check", "--source", "ftp://x"]));
    let config = fs::read_to_string(lab.path("varve.toml")).unwrap();
    lab.write("varve.toml", &format!("chanel = \"x\"\n{config}"));
    row("a mistake in the configuration", lab.run(&["upgrade"]));
    lab.write("varve.toml", &format!("channel = \"testing\"\n{config}"));
    row("an empty channel", lab.run(&["upgrade"]));
    lab.write("varve.toml", "");
    row("no source configured", lab.run(&["upgrade"]));
    lab.write("varve.toml", &config);
    let lock = varve_sys::lock::Lock::try_take(&Dir::open(lab.path("disk/varve")).unwrap(), "lock");
    lab.write("disk/varve/lock", "varve upgrade, process 7, since 2026-11-23T14:00:00Z\n");
    row("another is at work", lab.run(&["upgrade"]));
    drop(lock);
    lab.write("varve.toml", &format!("max-download = 10\n{config}"));
    lab.publish("r2");
    let said = lab.run(&["--quiet", "upgrade"]);
    assert_eq!(said.code, 4);
    assert!(said.err.contains("the configuration allows 10 (max-download)"), "{said:?}");
    insta::assert_snapshot!(text);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let lab = Lab::new();
    lab.publish("r1");
    lab.init();
    let mut child = lab.command(&["history"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn completions_and_manual_pages_are_made() {
    let lab = Lab::new();
    let said = lab.run(&["completions", "bash"]);
    assert!(said.out.contains("complete") && said.out.contains("rollback"));
    fs::create_dir(lab.path("man")).unwrap();
    let said = lab.run(&["manual", &lab.path("man").display().to_string()]);
    assert_eq!(said.code, 0, "{said:?}");
    let page = fs::read_to_string(lab.path("man/varve-upgrade.1")).unwrap();
    assert!(page.contains(".TH") && page.contains("dry"));
}

/// Waits until a process with this word in its command line is there, or is gone.
fn await_process(word: &str, there: bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let is_running = || {
        fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            line.split(|&b| b == 0).any(|part| part == word.as_bytes())
        })
    };
    while is_running() != there {
        assert!(
            std::time::Instant::now() < end,
            "{word}: {}",
            if there { "never" } else { "left" }
        );
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_try_ends_as_its_command_and_leaves_nothing_however_it_ends() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("=== NOT RUN: mounts need root ===");
    }
    let Some(shell) = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|p| Path::new(p).exists())
    else {
        return eprintln!("=== NOT RUN: there is no static shell (busybox) ===");
    };
    let lab = Lab::new();
    for dir in ["bin", "proc", "dev", "tmp"] {
        fs::create_dir_all(lab.path("tree").join(dir)).unwrap();
    }
    fs::copy(shell, lab.path("tree/bin/busybox")).unwrap();
    lab.publish("r1");
    lab.init();
    let script = |script: &str| -> Vec<String> {
        ["try", "--", "/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec()
    };
    let run = |text: &str| {
        let words = script(text);
        lab.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let said = run("/bin/busybox cat /usr/lib/release; exit 7");
    assert_eq!((said.code, said.out.as_str()), (7, "r1\n"), "{said:?}");
    let said = lab.run(&["try", "--", "/no/such"]);
    assert_eq!(said.code, 127, "{said:?}");
    assert!(said.err.contains("/no/such could not be started"), "{said:?}");
    let (code, value) = lab.json(&["try", "r1", "--", "/bin/busybox", "false"]);
    assert_eq!((code, &value["status"]), (1, &serde_json::json!(1)), "{value}");
    let said = lab.run(&["try", "--health"]);
    assert_eq!(said.code, 4, "{said:?}");

    for signal in [rustix::process::Signal::INT, rustix::process::Signal::KILL] {
        let seconds = format!("{}.{}", 6000 + std::process::id() % 1000, signal.as_raw());
        let words = script(&format!("/bin/busybox sleep {seconds} & /bin/busybox sleep {seconds}"));
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let mut child = lab.command(&words).stdin(std::process::Stdio::null()).spawn().unwrap();
        await_process(&seconds, true);
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).unwrap();
        let status = child.wait().unwrap();
        if signal == rustix::process::Signal::INT {
            assert_eq!(status.code(), Some(130));
        }
        await_process(&seconds, false);
    }
}

/// A shell of somebody with an account and nothing else, in the laboratory's folder.
fn as_nobody(lab: &Lab, script: &str) -> Output {
    use std::os::unix::process::CommandExt;
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script]).current_dir(lab.folder.path()).env_clear();
    shell.env("PATH", "/usr/bin:/bin").uid(65534).gid(65534).output().unwrap()
}

/// All that stands below a directory, as `find` sees it.
fn picture(path: &Path) -> String {
    let mut find = Command::new("find");
    find.arg(path).args(["-printf", "%p %y %m %U %G %s %T@ %n %l\\n"]);
    String::from_utf8(find.output().unwrap().stdout).unwrap()
}

/// Somebody with an account on the device reads, changes and runs nothing of `/varve`: not
/// the setuid program of a release that was replaced because of it, not by the command.
#[test]
fn a_local_user_reaches_nothing() {
    use std::os::unix::fs::PermissionsExt;
    if !rustix::process::geteuid().is_root() {
        eprintln!("=== NOT RUN: only root can become another user ===");
        return;
    }
    let lab = Lab::new();
    let mode = |path: &str, mode| {
        fs::set_permissions(lab.path(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    // Nothing but the mode of /varve itself is in the way.
    for path in ["", "disk"] {
        mode(path, 0o755);
    }
    fs::create_dir(lab.path("tree/usr/bin")).unwrap();
    fs::copy("/usr/bin/id", lab.path("tree/usr/bin/who")).unwrap();
    mode("tree/usr/bin/who", 0o4755);
    lab.publish("r1");
    assert_eq!(lab.init().code, 0);
    fs::remove_file(lab.path("tree/usr/bin/who")).unwrap();
    lab.publish("r2");
    assert_eq!(lab.run(&["upgrade"]).code, 0);
    let bad = "varve/layers/r1/tree/usr/bin/who";
    assert_eq!(fs::metadata(lab.path("disk").join(bad)).unwrap().permissions().mode(), 0o104_755);

    // Where it can be reached, it is root's: this shell and this disk would show it.
    fs::copy(lab.path("disk").join(bad), lab.path("who")).unwrap();
    mode("who", 0o4755);
    let reached = String::from_utf8(as_nobody(&lab, "./who").stdout).unwrap();
    assert!(reached.contains("uid=65534") && reached.contains("euid=0"), "{reached}");

    fs::copy(env!("CARGO_BIN_EXE_varve"), lab.path("varve")).unwrap();
    mode("varve", 0o755);
    let before = picture(&lab.path("disk"));
    for attempt in [
        "ls disk/varve",
        "cd disk/varve",
        "cat disk/varve/boot/selection",
        "cat disk/varve/trust/state",
        "cat disk/varve/layers/r1/tree/usr/lib/release",
        &format!("disk/{bad}"),
        &format!("/lib64/ld-linux-x86-64.so.2 disk/{bad}"),
        &format!("ln disk/{bad} /tmp/varve-who"),
        "exec 9<disk/varve/lock; flock -n 9",
        "echo x > disk/varve/boot/probe",
        "mkdir disk/varve/deployments/mine",
        "mv disk/varve disk/mine",
        "rm -rf disk/varve",
        "chmod 755 disk/varve",
        "touch disk/mine",
        "./varve --root disk --config varve.toml status",
        "./varve --root disk --config varve.toml upgrade",
        "./varve --root disk --config varve.toml rollback",
        "./varve --root disk --config varve.toml collect",
        "./varve --root disk --config varve.toml fsck --repair",
        "./varve --root disk --config varve.toml layer list",
    ] {
        let said = as_nobody(&lab, attempt);
        assert!(!said.status.success(), "{attempt}: {said:?}");
        assert!(!said.stdout.windows(6).any(|part| part == b"euid=0"), "{attempt}: {said:?}");
        if attempt.starts_with("./varve") {
            let err = String::from_utf8_lossy(&said.stderr);
            assert!(err.contains("run it as root"), "{attempt}: {err}");
        }
    }
    assert_eq!(picture(&lab.path("disk")), before);
    assert_eq!(lab.run(&["status"]).code, 0);
}

/// While one command changes the device, each other one that would says who is at work, and
/// changes nothing; those that look go on.
#[test]
fn two_at_once_one_gives_a_clear_refusal() {
    let lab = Lab::new();
    lab.publish("r1");
    assert_eq!(lab.init().code, 0);
    lab.publish("r2");
    fs::create_dir_all(lab.path("games/opt")).unwrap();
    let games = lab.path("games").display().to_string();
    let (disk, config) = (lab.path("disk"), lab.path("varve.toml"));
    let device = varve_agent::Device::open(varve_agent::Places::at(&disk, &config)).unwrap();
    let writer = device.lock("upgrade", Timestamp::now()).unwrap();
    let before = picture(&disk);
    let at_work = format!("at work is varve upgrade, process {}, since ", std::process::id());
    let busy = format!("at work: varve upgrade, process {}, since ", std::process::id());
    for args in [
        &["upgrade"][..],
        &["check"],
        &["collect"],
        &["rollback"],
        &["confirm"],
        &["confirm", "--after-boot", "--dry-run"],
        &["merge", "--now"],
        &["fsck", "--repair"],
        &["pin", "r1"],
        &["reset", "etc"],
        &["layer", "add", &games],
        // What a shutdown does: an upgrade that is still at work is about to be ended.
        &["finalize"],
    ] {
        let said = lab.run(args);
        if args.contains(&"--dry-run") {
            assert_eq!(said.code, 0, "{args:?} only looks: {said:?}");
            continue;
        }
        assert_eq!(said.code, 4, "{args:?}: {said:?}");
        assert!(said.err.contains(&at_work) || said.err.contains(&busy), "{args:?}: {said:?}");
    }
    for args in [&["status"][..], &["history"], &["fsck"], &["layer", "list"]] {
        assert_eq!(lab.run(args).code, 0, "{args:?}");
    }
    assert_eq!(picture(&disk), before);
    drop(writer);

    // Real ones, started at once: each does its work or is refused, and all is whole.
    for round in 0..8 {
        let commands = [&["upgrade"][..], &["collect"], &["upgrade"], &["finalize"]];
        let started: Vec<_> = commands
            .iter()
            .map(|args| lab.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn())
            .collect();
        for (args, process) in commands.iter().zip(started) {
            let said = Said::of(process.unwrap().wait_with_output().unwrap(), lab.folder.path());
            let refused = said.code == 4 && said.err.contains("at work");
            assert!(said.code == 0 || refused, "{round}, {args:?}: {said:?}");
        }
        if lab.run(&["upgrade"]).out.starts_with("Up to date") {
            let (_, status) = lab.json(&["status"]);
            assert_eq!(status["latest"], format!("r{}", round + 2));
        }
        assert_eq!(lab.run(&["fsck"]).code, 0, "{round}");
        assert_eq!(lab.run(&["confirm"]).code, 0, "{round}");
        lab.publish(&format!("r{}", round + 3));
    }
}
