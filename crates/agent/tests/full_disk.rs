//! A disk without a free byte: what frees room works, on a real file system.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Lab, noise, now, with_context};
use varve_agent::choose::Wish;
use varve_agent::layer::{self, Change, LayerError};
use varve_agent::{Device, Error, Places, ballast, collect, lifecycle, observe};
use varve_sys::task::Cancel;

/// A device on an ext4 of its own, with nothing set aside for root.
struct SmallDisk {
    lab: Lab,
}

impl SmallDisk {
    fn new(megabytes: u64) -> Option<Self> {
        Self::with(megabytes, &[])
    }

    /// With these options of mkfs.ext4.
    fn with(megabytes: u64, options: &[&str]) -> Option<Self> {
        let lab = Lab::new().with("reserve = \"1 MiB\"");
        let image = lab.folder.path().join("image");
        fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        let run = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).output();
            output.is_ok_and(|output| output.status.success())
        };
        let (image, disk) = (image.display().to_string(), lab.disk().display().to_string());
        let made = run("mkfs.ext4", &[&["-q", "-F", "-m", "0"], options, &[&image]].concat())
            && run("mount", &["-o", "loop", &image, &disk]);
        if !made {
            eprintln!("=== NOT RUN: this test makes and mounts an ext4: it needs root ===");
            return None;
        }
        Some(Self { lab })
    }

    fn places(&self) -> Places {
        Places { ballast: true, ..self.lab.places() }
    }

    /// Writes until nothing more fits.
    fn fill(&self) {
        let path = self.lab.disk().join("filler");
        let mut file = fs::File::options().create(true).append(true).open(path).unwrap();
        for size in [1 << 20, 64 << 10, 4096, 1] {
            let piece = noise(3, size);
            while file.write_all(&piece[..size]).is_ok() {}
        }
        let _ = file.sync_all();
        assert_eq!(self.free(), 0);
    }

    /// Makes files until there is no inode left.
    fn fill_inodes(&self) {
        let folder = self.lab.disk().join("fillers");
        let _ = fs::create_dir(&folder);
        let mut new = fs::File::options();
        new.write(true).create(true);
        let made = |n: &u32| new.open(folder.join(format!("{n}"))).is_ok();
        assert!((0..).take_while(made).count() < 10_000);
        assert_eq!(self.free_inodes(), 0);
    }

    fn free_inodes(&self) -> u64 {
        rustix::fs::statvfs(self.lab.disk()).unwrap().f_favail
    }

    /// Writes until so many bytes are free, more or less.
    fn fill_to(&self, bytes: u64) {
        let size = self.free().checked_sub(bytes).expect("less is written than is free");
        let path = self.lab.disk().join("filler");
        fs::write(path, noise(3, usize::try_from(size).unwrap())).unwrap();
        assert!(self.free().abs_diff(bytes) < 128 << 10, "{}", self.free());
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.lab.disk()).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    fn empty(&self) {
        let _ = fs::remove_file(self.lab.disk().join("filler"));
    }

    fn change(&self, change: &Change) -> Result<layer::Changed, Error> {
        let device = Device::open(self.places()).unwrap();
        let writer = device.lock("layer", now()).unwrap();
        with_context(&Cancel::new(), |context| {
            layer::change(&device, &writer, change, false, context)
        })
    }

    fn add(&self, name: &str, bytes: &[u8]) -> Result<layer::Added, Error> {
        let dir: PathBuf = self.lab.folder.path().join(name);
        fs::create_dir_all(dir.join("opt")).unwrap();
        fs::write(dir.join("opt").join(name), bytes).unwrap();
        let device = Device::open(self.places()).unwrap();
        let writer = device.lock("layer", now()).unwrap();
        let name = name.parse().unwrap();
        with_context(&Cancel::new(), |context| {
            layer::add(&device, &writer, Some(&name), &[dir], "", false, context)
        })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.lab.disk()).status();
    }
}

fn accept(lab: &Lab) -> String {
    let booted = lab.boot(false);
    lab.after_boot();
    booted
}

fn blocks(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
}

#[test]
fn with_no_byte_free_layers_are_removed_and_what_nothing_needs_is_collected() {
    let Some(disk) = SmallDisk::new(40) else { return };
    let lab = &disk.lab;
    lab.publish("r1");
    lab.init();
    disk.add("games", &noise(1, 3_000_000)).unwrap();
    let with_games = accept(lab);
    let file = lab.disk().join("varve").join(ballast::FILE);
    assert!(blocks(&file) >= ballast::SIZE, "room was set aside, in real blocks");

    // A deployment that was kept by a pin alone, with a layer that its user removed.
    let device = lab.device();
    let pin = |name: &str, pinned| {
        let device = lab.device();
        let writer = device.lock("pin", now()).unwrap();
        with_context(&Cancel::new(), |context| {
            lifecycle::pin(&device, &writer, &name.parse().unwrap(), pinned, context).unwrap()
        })
    };
    pin(&with_games, true);
    disk.change(&Change::Remove("games".into())).unwrap();
    accept(lab);
    disk.add("mine", b"small").unwrap();
    accept(lab);
    disk.add("more", b"small").unwrap();
    accept(lab);
    pin(&with_games, false);
    disk.fill();

    // Looking works, and says what would help.
    let status = observe::status_with_costs(&device).unwrap();
    assert_eq!(status.space.free, 0);
    assert_eq!((status.collectable.deployments, status.collectable.parts), (1, 1));
    assert!(status.collectable.bytes > 3_000_000, "{:?}", status.collectable);
    let cost = |name: &str| {
        let found = status.parts.iter().find(|part| part.name.as_str() == name);
        found.unwrap().cost
    };
    assert!(cost("games").alone >= 3_000_000, "{:?}", cost("games"));
    assert!(cost("mine").total < 100_000);
    let base: u64 = status.deployments.iter().map(|d| d.cost.unwrap().alone).sum();
    assert!(base < 3_500_000, "what deployments share is nobody's alone");

    // What was there before is taken off: its records fit into the ballast.
    disk.change(&Change::Remove("mine".into())).unwrap();
    assert!(!file.exists(), "given away");
    let latest = lab.device().store.deployment(&lab.selection().latest).unwrap();
    assert!(latest.record.own.iter().all(|own| own.layer.as_str() != "mine"));
    assert!(disk.free() > 3_000_000, "and the policy collected what nothing needs");

    // Full again, without a ballast: deleting needs no room at all.
    disk.empty();
    disk.add("large", &noise(2, 2_000_000)).unwrap();
    let with_large = accept(lab);
    pin(&with_large, true);
    disk.change(&Change::Remove("large".into())).unwrap();
    accept(lab);
    disk.change(&Change::Off("more".into())).unwrap();
    accept(lab);
    disk.change(&Change::On("more".into())).unwrap();
    accept(lab);
    pin(&with_large, false);
    let _ = fs::remove_file(&file);
    disk.fill();
    let device = lab.device();
    let writer = device.lock("collect", now()).unwrap();
    let plan = collect::plan(&device, true).unwrap();
    with_context(&Cancel::new(), |context| {
        collect::execute(&device, &writer, &plan, context).unwrap()
    });
    drop(writer);
    assert!(plan.bytes > 2_000_000, "{plan:?}");
    assert!(disk.free() > 2_000_000, "{} are free", disk.free());
    disk.empty();
    lab.check_all();
}

/// Blocks there are plenty, and no inode for the smallest new file.
#[test]
fn with_no_inode_free_what_nothing_needs_is_collected() {
    let Some(disk) = SmallDisk::with(40, &["-N", "1500"]) else { return };
    let lab = &disk.lab;
    lab.publish("r1");
    lab.init();
    let games = lab.folder.path().join("many/opt/games");
    fs::create_dir_all(&games).unwrap();
    for n in 0..300 {
        fs::write(games.join(format!("{n}")), "level").unwrap();
    }
    let add = |name: &str, source: PathBuf| {
        let device = Device::open(disk.places()).unwrap();
        let writer = device.lock("layer", now()).unwrap();
        let name = name.parse().unwrap();
        with_context(&Cancel::new(), |context| {
            layer::add(&device, &writer, Some(&name), &[source], "", false, context)
        })
    };
    let pin = |name: &str, pinned| {
        let device = lab.device();
        let writer = device.lock("pin", now()).unwrap();
        with_context(&Cancel::new(), |context| {
            lifecycle::pin(&device, &writer, &name.parse().unwrap(), pinned, context).unwrap()
        })
    };
    // Deployments that a pin alone kept, with a layer that its user removed; and a way back.
    add("games", lab.folder.path().join("many")).unwrap();
    let with_games = accept(lab);
    pin(&with_games, true);
    disk.change(&Change::Remove("games".into())).unwrap();
    accept(lab);
    disk.add("mine", b"small").unwrap();
    accept(lab);
    disk.add("more", b"small").unwrap();
    let latest = accept(lab);
    pin(&with_games, false);
    disk.fill_inodes();

    // More paths than inodes: refused, and nothing is left of it.
    let refused = add("again", lab.folder.path().join("many")).unwrap_err();
    let said = matches!(refused, Error::Layer(LayerError::Inodes { .. }));
    assert!(refused.is_no_space() || said, "{refused}");
    assert!(!lab.disk().join("varve/layers/again").exists());

    // Looking works, what runs boots, and deleting needs no inode.
    disk.fill_inodes();
    let device = Device::open(disk.places()).unwrap();
    let status = observe::status_with_costs(&device).unwrap();
    assert_eq!(status.space.free_inodes, Some(0));
    assert_eq!((status.collectable.deployments, status.collectable.parts), (1, 1));
    assert_eq!(lab.boot(false), latest);
    let ballast = lab.disk().join("varve").join(ballast::FILE);
    let writer = lab.device().lock("collect", now()).unwrap();
    let plan = collect::plan(&device, true).unwrap();
    with_context(&Cancel::new(), |context| {
        collect::execute(&device, &writer, &plan, context).unwrap()
    });
    drop(writer);
    assert!(disk.free_inodes() >= 300, "{}", disk.free_inodes());

    // A layer is taken off, and the way back taken, by the inodes of the ballast.
    for made_anew in ["for the layer", "for the way back"] {
        drop(device.lock("collect", now()).unwrap());
        assert!(ballast.exists(), "{made_anew}");
        disk.fill_inodes();
        if made_anew == "for the layer" {
            disk.change(&Change::Off("mine".into())).unwrap();
            assert!(!ballast.exists(), "given away");
            assert_ne!(accept(lab), latest);
            fs::remove_dir_all(lab.disk().join("fillers")).unwrap();
        }
    }
    let before = lab.selection().previous.unwrap();
    let writer = device.lock("rollback", now()).unwrap();
    with_context(&Cancel::new(), |context| {
        lifecycle::roll_back(&device, &writer, "rolled back by the user", context).unwrap()
    });
    assert!(!ballast.exists(), "given away");
    assert_eq!(lab.boot(false), before.as_str());
}

/// What the system before holds alone is freed when its user gives up the way back.
#[test]
fn with_no_byte_free_the_way_back_is_given_up() {
    let Some(disk) = SmallDisk::new(32) else { return };
    let lab = &disk.lab;
    lab.publish("r1");
    lab.init();
    disk.add("games", &noise(1, 3_000_000)).unwrap();
    let with_games = accept(lab);
    disk.change(&Change::Remove("games".into())).unwrap();
    let plan = |unfinished| {
        let device = Device::open(disk.places()).unwrap();
        collect::plan_without_previous(&device, unfinished)
    };
    let refused = |why: &str| {
        let error = plan(false).unwrap_err();
        assert!(matches!(&error, Error::WayBack { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    };
    refused("has not proved itself");
    let without = accept(lab);
    disk.fill();
    let before = lab.selection();
    assert_eq!(before.previous.as_ref().map(ToString::to_string), Some(with_games.clone()));
    let device = Device::open(disk.places()).unwrap();
    assert!(collect::plan(&device, false).unwrap().is_empty(), "by itself nothing goes");
    let (found, after) = plan(false).unwrap();
    let layers: Vec<_> = found.layers.iter().map(ToString::to_string).collect();
    assert_eq!(layers, ["games"]);
    let writer = device.lock("collect", now()).unwrap();
    with_context(&Cancel::new(), |context| {
        let after = after.as_ref();
        collect::execute_without_previous(&device, &writer, &found, after, context).unwrap()
    });
    assert!(disk.free() > 3_000_000, "{}", disk.free());
    let now = lab.selection();
    assert_eq!((now.latest.as_str(), now.previous, now.tries), (&without[..], None, None));
    let left = device.store.deployments().unwrap().items;
    assert_eq!(left.len(), 1);
    disk.empty();
    lab.check_all();
    // Asked again there is nothing to give up, and nothing to go back to.
    drop(writer);
    let (found, after) = plan(false).unwrap();
    assert!(found.is_empty() && after.is_none());
    assert!(lab.roll_back().is_err());
}

/// What the reserve is for is never used up by a layer, whatever a command writes.
#[test]
fn a_capture_and_a_layer_that_do_not_fit_are_refused_and_leave_nothing() {
    let Some(disk) = SmallDisk::new(24) else { return };
    let lab = &disk.lab;
    lab.publish("r1");
    lab.init();
    let free = disk.free();
    let refused = disk.add("big", &noise(4, usize::try_from(free).unwrap())).unwrap_err();
    assert!(matches!(refused, Error::Layer(LayerError::Room { .. })), "{refused}");
    assert_eq!(disk.free(), free - 2 * 1024 * 1024, "but for the ballast");
    // A top that fits once and not twice: the layer, and what follows the reboot.
    let report = lab.folder.path().join("run/boot.toml");
    let text = fs::read_to_string(&report).unwrap();
    fs::write(&report, text.replace("\"read-only\"", "\"persistent\"")).unwrap();
    let top = lab.disk().join("varve/state/versioned/r1/!/upper/opt");
    fs::create_dir_all(&top).unwrap();
    let size = usize::try_from(disk.free() * 6 / 10).unwrap();
    fs::write(top.join("big"), noise(5, size)).unwrap();
    let device = Device::open(disk.places()).unwrap();
    let writer = device.lock("layer capture", now()).unwrap();
    let name = "top".parse().unwrap();
    let refused = with_context(&Cancel::new(), |context| {
        layer::capture(&device, &writer, &name, "", false, context).unwrap_err()
    });
    assert!(matches!(refused, Error::Layer(LayerError::Room { .. })), "{refused}");
    assert!(!lab.disk().join("varve/layers/top").exists());
    assert_eq!(fs::read_dir(lab.disk().join("varve/staging")).unwrap().count(), 0);
}

/// A command that fills what it finds meets a full disk before it meets the reserve.
#[test]
fn a_command_that_makes_a_layer_leaves_the_reserve() {
    let Some(disk) = SmallDisk::new(40) else { return };
    let lab = &disk.lab;
    if !lab.give_shell() {
        return;
    }
    lab.publish("r1");
    lab.init();
    let device = Device::open(disk.places()).unwrap();
    let writer = device.lock("layer run", now()).unwrap();
    let free = disk.free();
    let script = "set -e; cd /; busybox dd if=/dev/zero of=full bs=65536 2>dd && exit 9
        busybox grep -q 'No space' dd; size=$(busybox stat -c %s full); busybox rm full dd
        echo $size > usr/size";
    let command = ["/bin/busybox", "sh", "-c", script].map(str::to_owned);
    let name = "full".parse().unwrap();
    with_context(&Cancel::new(), |context| {
        layer::run(&device, &writer, &name, "", &command, false, context).unwrap();
    });
    let size = fs::read_to_string(lab.disk().join("varve/layers/full/tree/usr/size")).unwrap();
    let (size, reserve): (u64, u64) = (size.trim().parse().unwrap(), 1 << 20);
    assert!(size + reserve <= free, "it wrote {size} of {free} bytes");
    assert!(size > free / 2, "it wrote only {size} of {free} bytes");
    assert_eq!(fs::read_dir(lab.disk().join("varve/staging")).unwrap().count(), 0);
}

/// What earlier attempts left is charged against the room that there is: it is no reason to
/// refuse an upgrade, it goes when room is short, and the oldest goes first.
#[test]
fn what_earlier_attempts_left_goes_oldest_first_when_room_is_short() {
    let Some(disk) = SmallDisk::new(40) else { return };
    let lab = &disk.lab;
    lab.publish("r1");
    lab.init();
    let incoming = lab.disk().join("varve/incoming");
    let leave = |number: u8, name: &str| {
        let path = incoming.join(name);
        fs::write(&path, noise(u64::from(number), 4 << 20)).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(number));
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        path
    };
    let digest = |number: u8| varve_format::ContentDigest([number; 32]).to_hex();
    let newest = leave(3, &digest(3));
    let oldest = leave(1, &format!("{}.4194304.part", digest(1)));
    let between = leave(2, &format!("{}.delta", digest(2)));
    let not_ours = leave(0, "notes.txt");
    // Room for the release is there only without the oldest.
    lab.tree().file("usr/bin/tool2", noise(7, 1_500_000));
    lab.publish("r2");
    disk.fill_to(3 << 20);
    lab.upgrade();
    assert!(!oldest.exists());
    assert!(lab.history().iter().any(|line| line.contains("collect")), "{:?}", lab.history());
    // Everything goes once the upgrade is done: nobody will ask for it.
    assert!(!newest.exists() && !between.exists() && not_ours.exists());
    lab.boot(false);
    lab.after_boot();

    // With nothing to do, what waits leaves the reserve alone, and no more goes than must.
    let newest = leave(3, &digest(3));
    let oldest = leave(1, &digest(1));
    disk.empty();
    disk.fill_to(512 << 10);
    assert!(lab.try_upgrade(&Wish::default(), &Cancel::new()).unwrap().is_none());
    assert!(!oldest.exists() && newest.exists());
}
