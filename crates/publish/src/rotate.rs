//! Changing keys, of any role, so that every device follows: those that look every hour
//! and those that slept through three changes.
//!
//! ```text
//! 1. documents of the role are signed for the old root and the new     (valid under both)
//! 2. timestamp.json is replaced                                        (old root: fine)
//! 3. <N+1>.root.json appears, signed by the old root keys and the new  (new root: fine)
//! ```
//!
//! Between any two steps a reader sees something that verifies. Every root is kept for
//! ever: a device that trusts version 2 walks 3, 4, 5 to the newest.
//!
//! A key that was lost cannot sign step 1 or 3. For the online roles the new keys alone
//! sign then, and readers may be refused between steps 2 and 3; they try again. The root
//! itself cannot be replaced without a threshold of its old keys: that is its purpose.

use jiff::Timestamp;
use serde::Serialize;

use crate::error::Result;
use crate::keys::{KeyDirs, Role, SigningKey};
use crate::repository::{Repository, SignedRoleState, after};
use crate::tuf::{self, Signer, Update};

/// What to rotate to.
#[derive(Debug, Clone, Default)]
pub struct RotateOptions {
    /// How many keys the role gets; as many as before without it.
    pub keys: Option<u32>,
    /// How many must sign; as before without it.
    pub threshold: Option<u32>,
    /// The old keys of the role are gone (or stolen): do not sign with them.
    pub lost: bool,
    /// Only check that it can be done.
    pub dry_run: bool,
}

/// What a rotation did.
#[derive(Debug, Clone, Serialize)]
pub struct Rotation {
    /// The role.
    pub role: Role,
    /// The identifiers of its new keys.
    pub new_keys: Vec<String>,
    /// The identifiers of the keys that are trusted no more.
    pub old_keys: Vec<String>,
    /// The state of all roles afterwards.
    pub roles: Vec<SignedRoleState>,
}

impl Repository {
    /// Gives a role new keys, and retires its old ones.
    pub fn rotate(
        &self,
        role: Role,
        options: &RotateOptions,
        dirs: &KeyDirs,
        now: Timestamp,
    ) -> Result<Rotation> {
        let tuf = self.tuf()?;
        let old_root = tuf.root.signed.clone();
        let (old_ids, old_threshold) =
            old_root.roles.get(&role.tuf()).map_or((Vec::new(), 1), |keys| {
                let ids =
                    keys.keyids.iter().map(|id| varve_format::id::to_hex(id.as_ref())).collect();
                (ids, u32::try_from(keys.threshold.get()).unwrap_or(u32::MAX))
            });
        let count = options.keys.unwrap_or(old_ids.len() as u32);
        let threshold = options.threshold.unwrap_or(old_threshold);
        if threshold == 0 || threshold > count {
            return Err(crate::PublishError::Threshold { role, threshold, keys: count });
        }
        // The root role must be able to sign before anything is made.
        let signer = Signer { dirs, roots: vec![old_root.clone()], extra: Vec::new() };
        signer.root(old_root.clone())?;
        if options.dry_run {
            let roles = after(&tuf, &Update::default());
            return Ok(Rotation { role, new_keys: Vec::new(), old_keys: old_ids, roles });
        }

        let old_keys = SigningKey::load_all(dirs, role)?;
        let mut new_keys = Vec::new();
        for _ in 0..count {
            new_keys.push(SigningKey::generate(dirs, role)?);
        }
        let mut root = old_root.clone();
        root.version = root.version.saturating_add(1);
        root.expires = self.expiry(Role::Root, now);
        tuf::set_role(&mut root, role, threshold, &new_keys)?;

        // The root document is signed for both, whatever was rotated; the others for both
        // unless the old keys are gone.
        let both = vec![old_root, root.clone()];
        let mut update = Update::default();
        let root_signer = Signer { dirs, roots: both.clone(), extra: Vec::new() };
        update.root = Some(root_signer.root(root.clone())?);
        let roots = if options.lost { vec![root] } else { both };
        let signer = Signer { dirs, roots, extra: Vec::new() };
        let [_, _, snapshot, timestamp] = tuf.state();
        if role == Role::Targets {
            let mut document = tuf.targets.signed.clone();
            document.version = document.version.saturating_add(1);
            document.expires = self.expiry(Role::Targets, now);
            update.targets = Some(signer.targets(document)?);
        }
        let mut snapshot_meta = tuf.timestamp.signed.meta.get("snapshot.json").cloned();
        if matches!(role, Role::Targets | Role::Snapshot) {
            let described = match &update.targets {
                Some(targets) => Some(tuf::describe(targets)),
                None => tuf.snapshot.signed.meta.get("targets.json").cloned(),
            };
            if let Some(described) = described {
                let signed =
                    signer.snapshot(snapshot.1 + 1, self.expiry(Role::Snapshot, now), described)?;
                snapshot_meta = Some(tuf::describe(&signed));
                update.snapshot = Some(signed);
            }
        }
        if role != Role::Root
            && let Some(meta) = snapshot_meta
        {
            update.timestamp =
                Some(signer.timestamp(timestamp.1 + 1, self.expiry(Role::Timestamp, now), meta)?);
        }
        update.commit(&self.metadata()?)?;
        for key in &old_keys {
            key.retire()?;
        }
        Ok(Rotation {
            role,
            new_keys: new_keys.iter().map(|key| key.id().to_owned()).collect(),
            old_keys: old_ids,
            roles: after(&tuf, &update),
        })
    }
}
