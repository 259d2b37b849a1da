//! What `try --health` says.

use varve_agent::tryout::Tried;
use varve_term::human::plural;

pub(crate) fn checks(tried: &Tried) -> String {
    let mut text = String::new();
    for check in &tried.checks {
        text.push_str(&format!("{}: {} ({} ms)\n", check.name, check.how, check.milliseconds));
        if !check.passed {
            text.extend(check.output.lines().map(|line| format!("    {line}\n")));
        }
    }
    let failed = tried.checks.iter().filter(|check| !check.passed).count();
    let name = &tried.deployment;
    text.push_str(&match failed {
        0 => format!("{name} passes all of its health checks here; a boot has the last word.\n"),
        _ => format!(
            "{name} fails {} here.\n",
            plural(failed as u64, "health check", "health checks")
        ),
    });
    text
}

#[cfg(test)]
mod tests {
    use varve_agent::tryout::Check;

    use super::*;

    #[test]
    fn what_is_said_of_checks() {
        let check = |name: &str, passed, how: &str, output: &str| Check {
            name: name.to_owned(),
            passed,
            how: how.to_owned(),
            output: output.to_owned(),
            milliseconds: 12,
        };
        let mut tried = Tried {
            deployment: "debian-13.2".parse().unwrap(),
            left_out: Vec::new(),
            status: None,
            checks: vec![check("name", true, "passed", "device")],
        };
        assert_eq!(
            checks(&tried),
            "name: passed (12 ms)\n\
             debian-13.2 passes all of its health checks here; a boot has the last word.\n"
        );
        tried.checks.push(check("web", false, "failed with exit status 7", "a\nno route"));
        insta::assert_snapshot!(checks(&tried), @r"
        name: passed (12 ms)
        web: failed with exit status 7 (12 ms)
            a
            no route
        debian-13.2 fails 1 health check here.
        ");
    }
}
