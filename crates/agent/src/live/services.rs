//! Who runs from files that change: systemd's services by their control groups, and the
//! rest.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

/// Services that others live by, or whose end ends a person's work: they keep the old files
/// until a reboot. The beginning of the unit's name.
const KEPT: [&str; 16] = [
    "dbus",
    "polkit",
    "systemd-logind",
    "systemd-udevd",
    "systemd-journald",
    "user@",
    "getty@",
    "serial-getty@",
    "console-getty",
    "emergency",
    "rescue",
    "display-manager",
    "gdm",
    "lightdm",
    "sddm",
    "varve-",
];

/// A service that runs from files that change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Service {
    /// Its unit.
    pub unit: String,
    /// One of its files that change, or why else it must start anew.
    pub why: String,
    /// Whether it is started anew: not if others live by it.
    pub restart: bool,
}

/// A process of no service that runs from files that change; it keeps them until it ends.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Keeper {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

/// The service that a process belongs to, by `/proc/PID/cgroup`; none for processes of
/// people's sessions and for process 1.
pub(super) fn unit_of(proc: &Path, pid: u32) -> Option<String> {
    unit_in(&std::fs::read_to_string(proc.join(pid.to_string()).join("cgroup")).ok()?)
}

fn unit_in(cgroup: &str) -> Option<String> {
    // Version 2: `0::/path`; with version 1 beside it, systemd's own is `1:name=systemd:/path`.
    // In a container the other one may be its host's.
    cgroup.lines().find_map(|line| {
        let path = line.strip_prefix("0::");
        let path = path.or_else(|| line.split_once(":name=systemd:").map(|(_, path)| path))?;
        // Below a service that manages others (a user's manager) the outer one is what
        // systemd knows by this name.
        path.split('/').find(|part| part.ends_with(".service")).map(str::to_owned)
    })
}

/// Gathers the reasons by unit; the first one for each counts.
pub(super) fn gather(reasons: Vec<(String, String)>) -> Vec<Service> {
    let mut units: BTreeMap<String, String> = BTreeMap::new();
    for (unit, why) in reasons {
        units.entry(unit).or_insert(why);
    }
    let service = |(unit, why): (String, String)| {
        let restart = !KEPT.iter().any(|kept| unit.starts_with(kept));
        Service { unit, why, restart }
    };
    units.into_iter().map(service).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_name_services() {
        let unit = |text: &str| unit_in(text).unwrap_or_default();
        assert_eq!(unit("0::/system.slice/ssh.service\n"), "ssh.service");
        assert_eq!(unit("0::/system.slice/system-x.slice/x@1.service/sub\n"), "x@1.service");
        assert_eq!(unit("0::/init.scope\n"), "");
        assert_eq!(unit("0::/user.slice/user-0.slice/session-3.scope\n"), "");
        let user = "0::/user.slice/user-1.slice/user@1.service/app.slice/a.service\n";
        assert_eq!(unit(user), "user@1.service");
        let old = "12:pids:/\n1:name=systemd:/system.slice/cron.service\n0::/\n";
        assert_eq!(unit(old), "cron.service");
        assert_eq!(unit("9:name=systemd:/\n0::/system.slice/web.service\n"), "web.service");
    }

    #[test]
    fn what_others_live_by_is_kept() {
        let gathered = gather(vec![
            ("ssh.service".into(), "/usr/sbin/sshd".into()),
            ("dbus.service".into(), "/usr/lib/libx".into()),
            ("ssh.service".into(), "/usr/lib/libx".into()),
        ]);
        let seen: Vec<_> = gathered.iter().map(|s| (&s.unit[..], &s.why[..], s.restart)).collect();
        assert_eq!(
            seen,
            [("dbus.service", "/usr/lib/libx", false), ("ssh.service", "/usr/sbin/sshd", true)]
        );
    }
}
