//! Which release to take. Pure.
//!
//! ```text
//! releases of the repository, of the channel, newest first
//!   -> the first that did not fail here before      unless named by --to
//!   -> newer than the latest?                       else up to date
//! ```

use varve_fetch::ReleaseRef;
use varve_format::ReleaseName;
use varve_format::deployment::ReleaseRef as Installed;

use crate::rejected::{Rejected, Rejection};

/// What the user asks for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wish {
    /// This release and no other.
    pub to: Option<ReleaseName>,
    /// An older one than the latest may be taken.
    pub allow_downgrade: bool,
    /// The latest itself may be staged again, as the configuration says now.
    pub restage: bool,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Choice {
    /// The latest is what there is to have.
    UpToDate {
        /// Newer ones that failed here before and are not tried again by themselves.
        passed_over: Vec<Rejection>,
    },
    /// This release.
    Take {
        /// Which.
        release: ReleaseRef,
        /// Newer ones that failed here before and are not tried again by themselves.
        passed_over: Vec<Rejection>,
        /// Why this one failed here before; the user named it all the same.
        failed_before: Option<Rejection>,
    },
}

/// Why there is no choice.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChoiceError {
    /// The named release is not published.
    #[error("the repository has no release {name}")]
    NoSuchRelease {
        /// What was asked for.
        name: ReleaseName,
        /// What there is, newest first.
        known: Vec<ReleaseName>,
    },
    /// Nothing is published in the channel.
    #[error("the repository has no release in the channel {channel:?}")]
    EmptyChannel {
        /// The channel.
        channel: String,
        /// The channels that there are.
        known: Vec<String>,
    },
    /// It is older than what is here.
    #[error("{to} is older than {from}")]
    Downgrade {
        /// What was asked for.
        to: ReleaseName,
        /// What is here.
        from: ReleaseName,
    },
}

/// Chooses. `releases` are all of the repository, the highest sequence first; `latest` is
/// what the selection names.
pub fn choose(
    releases: &[ReleaseRef],
    channel: &str,
    latest: Option<&Installed>,
    rejected: &Rejected,
    wish: &Wish,
) -> Result<Choice, ChoiceError> {
    let is_latest = |release: &ReleaseRef| latest.is_some_and(|l| l.digest == release.digest);
    if let Some(name) = &wish.to {
        let Some(release) = releases.iter().find(|release| release.name == *name) else {
            let known = releases.iter().map(|release| release.name.clone()).collect();
            return Err(ChoiceError::NoSuchRelease { name: name.clone(), known });
        };
        if is_latest(release) && !wish.restage {
            return Ok(Choice::UpToDate { passed_over: Vec::new() });
        }
        older(release, latest, wish)?;
        return Ok(Choice::Take {
            release: release.clone(),
            passed_over: Vec::new(),
            failed_before: rejected.find(&release.digest).cloned(),
        });
    }
    let mut in_channel = releases.iter().filter(|release| release.channel == channel).peekable();
    if in_channel.peek().is_none() {
        let mut known: Vec<_> = releases.iter().map(|release| release.channel.clone()).collect();
        known.sort();
        known.dedup();
        return Err(ChoiceError::EmptyChannel { channel: channel.to_owned(), known });
    }
    let mut passed_over = Vec::new();
    for release in in_channel {
        if is_latest(release) && !wish.restage {
            break;
        }
        if let Some(rejection) = rejected.find(&release.digest).filter(|_| !is_latest(release)) {
            passed_over.push(rejection.clone());
            continue;
        }
        if !is_latest(release) && older(release, latest, wish).is_err() {
            break;
        }
        return Ok(Choice::Take { release: release.clone(), passed_over, failed_before: None });
    }
    Ok(Choice::UpToDate { passed_over })
}

fn older(release: &ReleaseRef, latest: Option<&Installed>, wish: &Wish) -> Result<(), ChoiceError> {
    match latest {
        Some(latest) if release.sequence < latest.sequence && !wish.allow_downgrade => {
            Err(ChoiceError::Downgrade { to: release.name.clone(), from: latest.name.clone() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use varve_format::{ReleaseDigest, Sha256Digest};

    use super::*;

    fn release(n: u8, channel: &str) -> ReleaseRef {
        ReleaseRef {
            name: format!("r{n}").parse().unwrap(),
            sequence: n.into(),
            channel: channel.to_owned(),
            digest: ReleaseDigest([n; 32]),
            record_sha256: Sha256Digest([0; 32]),
            record_size: 0,
            deltas: None,
        }
    }

    fn installed(n: u8) -> Installed {
        let name = format!("r{n}").parse().unwrap();
        Installed { name, digest: ReleaseDigest([n; 32]), sequence: n.into() }
    }

    fn rejected(numbers: &[u8]) -> Rejected {
        let mut rejected = Rejected::default();
        for &n in numbers {
            rejected.add(&installed(n), "it hung", Timestamp::UNIX_EPOCH);
        }
        rejected
    }

    fn taken(choice: Result<Choice, ChoiceError>) -> Option<(String, usize)> {
        match choice.unwrap() {
            Choice::Take { release, passed_over, .. } => {
                Some((release.name.to_string(), passed_over.len()))
            }
            Choice::UpToDate { .. } => None,
        }
    }

    #[test]
    fn by_itself_the_newest_of_the_channel_that_did_not_fail() {
        let all = [
            release(4, "testing"),
            release(3, "stable"),
            release(2, "stable"),
            release(1, "stable"),
        ];
        let pick = |latest: Option<u8>, failed: &[u8]| {
            let latest = latest.map(installed);
            taken(choose(&all, "stable", latest.as_ref(), &rejected(failed), &Wish::default()))
        };
        assert_eq!(pick(None, &[]), Some(("r3".into(), 0)));
        assert_eq!(pick(Some(1), &[]), Some(("r3".into(), 0)));
        assert_eq!(pick(Some(1), &[3]), Some(("r2".into(), 1)));
        assert_eq!(pick(Some(1), &[2, 3]), None);
        assert_eq!(pick(Some(3), &[]), None);
        assert_eq!(pick(Some(3), &[3]), None, "what runs is not left for an older one");
        assert_eq!(pick(Some(4), &[]), None, "never back by itself");
        assert_eq!(pick(Some(9), &[]), None, "a latest that is no longer published");
    }

    #[test]
    fn what_is_named_is_taken_or_refused_with_a_reason() {
        let all = [release(3, "stable"), release(2, "stable")];
        let ask = |to: &str, allow_downgrade, restage| {
            let wish = Wish { to: Some(to.parse().unwrap()), allow_downgrade, restage };
            choose(&all, "stable", Some(&installed(3)), &rejected(&[2]), &wish)
        };
        assert!(
            matches!(ask("r9", false, false), Err(ChoiceError::NoSuchRelease { known, .. }) if known.len() == 2)
        );
        assert!(matches!(ask("r2", false, false), Err(ChoiceError::Downgrade { .. })));
        assert!(matches!(ask("r2", true, false), Ok(Choice::Take { failed_before: Some(_), .. })));
        assert_eq!(taken(ask("r3", false, false)), None);
        assert_eq!(taken(ask("r3", false, true)), Some(("r3".into(), 0)));
        let wish = Wish::default();
        let empty = choose(&all, "x", None, &Rejected::default(), &wish).unwrap_err();
        assert!(matches!(empty, ChoiceError::EmptyChannel { known, .. } if known == ["stable"]));
    }

    #[test]
    fn the_latest_can_be_staged_again() {
        let all = [release(3, "stable"), release(2, "stable")];
        let wish = Wish { restage: true, ..Wish::default() };
        let pick = |latest| {
            taken(choose(&all, "stable", Some(&installed(latest)), &rejected(&[3]), &wish))
        };
        assert_eq!(pick(3), Some(("r3".into(), 0)));
        assert_eq!(pick(2), Some(("r2".into(), 1)));
    }
}
