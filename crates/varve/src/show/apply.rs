//! What `apply` says.

use varve_agent::live::{Instead, Way};
use varve_term::human::plural;

use crate::commands::apply::{Applied, SoftReboot};

pub(crate) fn live(applied: &Applied) -> String {
    let (plan, mut text) = (&applied.plan, String::new());
    let (from, to) = (&plan.from, &plan.to);
    let dirs: Vec<_> = plan.directories.iter().map(ToString::to_string).collect();
    let dirs = if dirs.is_empty() { "nothing".to_owned() } else { dirs.join(", ") };
    let mut line = |words: String| text.push_str(&(words + "\n"));
    match &applied.switched {
        None if plan.obstacles.is_empty() => {
            line(format!("{to} can be shown in the place of {from}: {dirs} would change."));
        }
        None => {
            line(format!("{to} cannot be shown in the place of {from}:"));
            plan.obstacles.iter().for_each(|obstacle| line(format!("  {}", obstacle.why)));
            let instead = plan.obstacles.iter().map(|obstacle| obstacle.instead).max();
            line(instead.map_or(String::new(), |way| format!("{} does it.", self::instead(way))));
            return text;
        }
        Some(switched) => {
            line(format!("{to} is shown in the place of {from}: {dirs}."));
            line(format!(
                "{} with mounts of their own see it; the longest change took {} \u{b5}s.",
                plural(
                    switched.namespaces.len() as u64,
                    "group of processes",
                    "groups of processes"
                ),
                switched.microseconds
            ));
            for (pid, why) in &switched.unreached {
                line(format!("Process {pid} and those with it keep the old files: {why}."));
            }
            for what in &switched.not_noted {
                line(format!("It is done, but could not be noted: {what}."));
            }
            if switched.namespaces.values().any(|way| *way == Way::Stacked) {
                line("This kernel keeps the old view below the new one until a reboot.".into());
            }
        }
    }
    plan.stays.iter().for_each(|what| line(format!("Stays until the next boot: {what}.")));
    for service in &plan.services {
        let unit = &service.unit;
        let done = match (service.restart, &applied.switched) {
            (false, _) => "keeps the old files until a reboot, as others live by it",
            (true, None) => "would be started anew",
            (true, Some(_)) if applied.restarted.contains(unit) => "was started anew",
            (true, Some(_)) => "keeps the old files until it is started anew",
        };
        line(format!("{unit} {done} ({}).", service.why));
    }
    for (unit, why) in &applied.failed {
        line(format!("{unit} did not start: {why}; see `systemctl status {unit}`."));
    }
    if !plan.keepers.is_empty() {
        let named = plan.keepers.iter().take(8).map(|k| format!("{} ({})", k.name, k.pid));
        let named: Vec<_> = named.collect();
        line(format!("The old files are kept until they end by {}.", named.join(", ")));
    }
    if applied.switched.is_some() {
        line(format!(
            "The next boot tries what it boots as ever; `varve apply --live {from}` goes back."
        ));
    }
    text
}

pub(crate) fn soft_reboot(answer: &SoftReboot) -> String {
    let plan = &answer.plan;
    let to = &plan.to;
    if !plan.obstacles.is_empty() {
        let whys: Vec<_> =
            plan.obstacles.iter().map(|found| format!("  {}\n", found.why)).collect();
        return format!(
            "{to} cannot be booted without a new kernel:\n{}A reboot does it.\n",
            whys.concat()
        );
    }
    let mut text = match answer.dry_run {
        true => format!("A soft reboot from {} would boot {to}.\n", plan.from),
        false => format!("All programs end now and start anew in {to}.\n"),
    };
    text.extend(plan.stays.iter().map(|what| format!("Stays until a reboot: {what}.\n")));
    text
}

/// The command that does what a live change cannot.
pub(crate) fn instead(way: Instead) -> &'static str {
    match way {
        Instead::SoftReboot => "`varve apply --soft-reboot`, or a reboot,",
        Instead::Reboot => "A reboot",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use varve_agent::live::{Keeper, Obstacle, Plan, Service, Switched};

    use super::*;

    fn plan() -> Plan {
        let service = |unit: &str, restart| Service {
            unit: unit.to_owned(),
            why: "/usr/lib/libssl.so.3".to_owned(),
            restart,
        };
        Plan {
            from: "debian-13.1".parse().unwrap(),
            to: "debian-13.1+4".parse().unwrap(),
            directories: vec![varve_format::TreePath::new(b"usr").unwrap()],
            obstacles: Vec::new(),
            stays: vec!["/var, as the old release has it (/var/lib/dpkg/status)".to_owned()],
            services: vec![service("dbus.service", false), service("ssh.service", true)],
            keepers: vec![Keeper { pid: 812, name: "bash".to_owned() }],
            steps: Vec::new(),
        }
    }

    fn applied(plan: Plan, switched: Option<Switched>) -> Applied {
        let restarted = switched.iter().map(|_| "ssh.service".to_owned()).collect();
        Applied { plan, dry_run: switched.is_none(), switched, restarted, failed: Vec::new() }
    }

    #[test]
    fn what_is_said_of_a_live_change() {
        let switched = Switched {
            namespaces: BTreeMap::from([(1, Way::Exchanged), (400, Way::Followed)]),
            unreached: BTreeMap::new(),
            microseconds: 180,
            not_noted: Vec::new(),
        };
        insta::assert_snapshot!(live(&applied(plan(), Some(switched))), @r"
        debian-13.1+4 is shown in the place of debian-13.1: /usr.
        2 groups of processes with mounts of their own see it; the longest change took 180 µs.
        Stays until the next boot: /var, as the old release has it (/var/lib/dpkg/status).
        dbus.service keeps the old files until a reboot, as others live by it (/usr/lib/libssl.so.3).
        ssh.service was started anew (/usr/lib/libssl.so.3).
        The old files are kept until they end by bash (812).
        The next boot tries what it boots as ever; `varve apply --live debian-13.1` goes back.
        ");
        insta::assert_snapshot!(live(&applied(plan(), None)), @r"
        debian-13.1+4 can be shown in the place of debian-13.1: /usr would change.
        Stays until the next boot: /var, as the old release has it (/var/lib/dpkg/status).
        dbus.service keeps the old files until a reboot, as others live by it (/usr/lib/libssl.so.3).
        ssh.service would be started anew (/usr/lib/libssl.so.3).
        The old files are kept until they end by bash (812).
        ");
        let why = "the settings in /etc change (/etc/ssh/sshd_config)".to_owned();
        let obstacles = vec![Obstacle { why, instead: Instead::SoftReboot }];
        insta::assert_snapshot!(live(&applied(Plan { obstacles, ..plan() }, None)), @r"
        debian-13.1+4 cannot be shown in the place of debian-13.1:
          the settings in /etc change (/etc/ssh/sshd_config)
        `varve apply --soft-reboot`, or a reboot, does it.
        ");
    }
}
