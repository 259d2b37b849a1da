//! The command as a user types it: answers, messages, exit codes.
#![allow(clippy::disallowed_methods, reason = "test data, kept by no device")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

struct World {
    temp: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { temp: tempfile::tempdir().unwrap() };
        world.good(&["init"]);
        world
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_varve-repo"));
        command.args(["--repo", "repo", "--quiet"]).args(arguments).current_dir(self.temp.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs what must succeed; gives standard output.
    fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs what must fail with this code; gives standard error.
    fn bad(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn tree(&self, files: &[(&str, &str)]) {
        let _ = fs::remove_dir_all(self.temp.path().join("tree"));
        for (path, text) in files {
            let path = self.temp.path().join("tree").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }
}

#[test]
fn a_release_from_source_to_list() {
    let world = World::new();
    world.tree(&[("etc/a", "one"), ("etc/b", "same")]);
    let built = world.good(&["build", "--name", "r-1", "tree"]);
    assert!(built.starts_with("Built r-1: 4 paths, 7 B.\n"), "{built}");
    assert!(built.ends_with("Next: varve-repo publish r-1\n"), "{built}");
    assert!(world.good(&["list"]).contains("built, not published: r-1"));
    let would = world.good(&["publish", "r-1", "--dry-run"]);
    assert_eq!(would, "Would publish r-1 as number 1 in the channel stable.\n");
    let did = world.good(&["publish", "r-1"]);
    assert_eq!(did, "Published r-1 as number 1 in the channel stable.\n");

    world.tree(&[("etc/a", "other"), ("etc/b", "same")]);
    world.good(&["build", "--name", "r-2", "tree", "--publish", "--channel", "beta"]);
    let json: serde_json::Value = serde_json::from_str(&world.good(&["--json", "list"])).unwrap();
    assert_eq!(json["releases"][0]["release"]["name"], "r-2");
    assert_eq!(json["releases"][0]["release"]["channel"], "beta");
    assert_eq!(json["releases"][1]["record"]["totals"]["bytes"], 7);
    assert_eq!(json["roles"][3]["role"], "timestamp");

    let diff = world.good(&["diff", "r-1", "r-2"]);
    assert!(diff.contains("content   3 B  5 B  /etc/a"), "{diff}");
    assert!(
        diff.contains("5 B of new content in 1 file; the tree goes from 7 B to 9 B."),
        "{diff}"
    );
    assert!(world.good(&["show", "r-2"]).starts_with("name          r-2\nchannel       beta\n"));
    let check = world.good(&["check"]);
    assert!(check.starts_with("Checked 2 releases, 2 packs with 3 contents,"), "{check}");
    assert!(check.ends_with(": all is well.\n"), "{check}");
}

#[test]
fn a_tar_on_standard_input_is_the_same_release() {
    let world = World::new();
    world.tree(&[("etc/a", "one")]);
    let identity = |name: &str| -> serde_json::Value {
        let text = world.good(&["--json", "show", name]);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["record"]["digest"].clone()
    };
    world.good(&["build", "--name", "dir", "tree"]);
    let tar = Command::new("tar")
        .args(["--format=posix", "-C", "tree", "-cf", "-", "."])
        .current_dir(world.temp.path())
        .output()
        .unwrap();
    assert!(tar.status.success());
    let mut child = world
        .command(&["build", "--name", "tar", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&tar.stdout).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(identity("dir"), identity("tar"));
}

#[test]
fn errors_say_what_to_do() {
    let world = World::new();
    assert_eq!(
        world.bad(4, &["publish", "x"]),
        "error: no release x was built: there is no pending/x.json\n\
         hint: build it first: varve-repo build --name NAME SOURCE\n"
    );
    let text = world.bad(2, &["--repo", "elsewhere", "list"]);
    assert!(text.starts_with("error: elsewhere is not a repository"), "{text}");
    let text = world.bad(4, &["init"]);
    assert_eq!(text, "error: repo is a repository already\n");
    world.tree(&[("a", "a")]);
    world.good(&["build", "--name", "a", "tree"]);
    let text = world.bad(4, &["--keys", "nokeys", "publish", "a"]);
    assert!(text.contains("0 of them are in nokeys/targets"), "{text}");
    assert!(text.contains("hint: say where the keys are with --keys DIR"), "{text}");
    for arguments in [
        &["build", "--name", "../x", "tree"][..],
        &["prune"],
        &["rotate", "nobody"],
        &["init", "--threshold", "targets"],
        &["publish", "a", "--channel", "a/b"],
    ] {
        assert!(world.bad(2, arguments).starts_with("error: "), "{arguments:?}");
    }
    let output = world.run(&["--json", "publish", "x"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["error"]["code"], "refused");
}

#[test]
fn damage_ends_a_check_with_its_own_code() {
    let world = World::new();
    world.tree(&[("a", "some bytes")]);
    world.good(&["build", "--name", "a", "tree", "--publish"]);
    let packs = world.temp.path().join("repo/packs");
    let pack = fs::read_dir(packs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "pack"))
        .unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&pack, bytes).unwrap();
    let output = world.run(&["check"]);
    assert_eq!(output.status.code(), Some(5));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("is damaged") && text.ends_with("1 problem.\n"), "{text}");
}

#[test]
fn keys_rotate_refresh_and_prune_by_command() {
    let world = World::new();
    let init: serde_json::Value = serde_json::from_str(&world.good(&[
        "--json",
        "--repo",
        "other",
        "init",
        "--threshold",
        "root=2",
        "--expires",
        "timestamp=3",
    ]))
    .unwrap();
    assert_eq!(init["roles"][0]["keys"], 2);
    assert_eq!(init["roles"][3]["expires_days"], 3);
    assert!(
        Path::new(init["roles"][0]["directory"].as_str().unwrap()).ends_with("other.keys/root")
    );
    assert!(world.good(&["rotate", "root", "--dry-run"]).contains("can be rotated"));
    assert!(world.good(&["rotate", "root"]).starts_with("The root role has new keys in "));
    assert!(world.good(&["refresh"]).starts_with("Signed:\n"));
    world.tree(&[("a", "one")]);
    world.good(&["build", "--name", "a", "tree", "--publish"]);
    world.tree(&[("a", "two")]);
    world.good(&["build", "--name", "b", "tree", "--publish"]);
    assert!(world.good(&["prune", "--keep", "1", "--dry-run"]).starts_with("Would take out a "));
    assert!(world.good(&["prune", "--keep", "1"]).starts_with("Took out a (number 1 in stable)\n"));
    assert_eq!(world.good(&["prune", "--keep", "1"]), "There is nothing to prune.\n");
    assert!(world.good(&["check"]).ends_with("all is well.\n"));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let world = World::new();
    let mut child = world.command(&["completions", "zsh"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}
