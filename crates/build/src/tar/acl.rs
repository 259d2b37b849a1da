//! POSIX ACLs: from the words that tar keeps (acl(5), "short and long text forms") to the
//! bytes that the kernel keeps.
//!
//! ```text
//! system.posix_acl_access   version:u32 = 2, then  { tag:u16 permissions:u16 id:u32 } ...
//!                           (linux/posix_acl_xattr.h; little-endian; sorted by tag and id)
//! ```

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Turns the text into the attribute's value. None for an access ACL that says no more
/// than the mode does: the kernel keeps none then.
pub(super) fn to_binary(text: &[u8], access: bool) -> Result<Option<Vec<u8>>, String> {
    let shown = || String::from_utf8_lossy(&text[..text.len().min(200)]).into_owned();
    let broken = || format!("has the ACL {:?}, which is not understood", shown());
    let text = std::str::from_utf8(text).map_err(|_| broken())?;
    let mut entries: Vec<(u16, u32, u16)> = Vec::new();
    for line in text.split([',', '\n']) {
        let line = line.split('#').next().unwrap_or_default().trim();
        let line = line.strip_prefix("default:").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let fields: Vec<&str> = line.split(':').collect();
        let (tag, who, permissions) = match fields[..] {
            [tag, permissions] if matches!(tag, "mask" | "m" | "other" | "o") => {
                (tag, "", permissions)
            }
            [tag, who, permissions] => (tag, who, permissions),
            // star and libarchive put the number behind the name.
            [tag, _, permissions, id] => (tag, id, permissions),
            _ => return Err(broken()),
        };
        let tag = match (tag, who.is_empty()) {
            ("user" | "u", true) => USER_OBJ,
            ("user" | "u", false) => USER,
            ("group" | "g", true) => GROUP_OBJ,
            ("group" | "g", false) => GROUP,
            ("mask" | "m", true) => MASK,
            ("other" | "o", true) => OTHER,
            _ => return Err(broken()),
        };
        let id = if who.is_empty() {
            NO_ID
        } else {
            who.parse().map_err(|_| {
                format!(
                    "has an ACL that names {who:?}, and names differ between systems: make the \
                     archive with numbers (tar --numeric-owner) or with --xattrs instead of --acls"
                )
            })?
        };
        let mut bits = 0;
        for c in permissions.trim().chars() {
            bits |= match c {
                'r' => 4,
                'w' => 2,
                'x' => 1,
                '-' => 0,
                _ => return Err(broken()),
            };
        }
        entries.push((tag, id, bits));
    }
    entries.sort_unstable();
    let has = |tag| entries.iter().filter(|e| e.0 == tag).count();
    let extended = has(USER) + has(GROUP) > 0;
    let twice = entries.windows(2).any(|e| (e[0].0, e[0].1) == (e[1].0, e[1].1));
    let complete = [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|&tag| has(tag) == 1);
    if entries.is_empty() {
        return Ok(None);
    }
    if twice || !complete || has(MASK) > 1 || (extended && has(MASK) == 0) {
        return Err(broken());
    }
    if access && entries.len() == 3 {
        return Ok(None);
    }
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, id, bits) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(bits.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_what_the_kernel_keeps() {
        // As `setfacl -m u:1000:rw` and `getfattr -e hex` give it.
        let want = [
            &b"\x02\0\0\0"[..],
            b"\x01\0\x06\0\xff\xff\xff\xff",
            b"\x02\0\x06\0\xe8\x03\0\0",
            b"\x04\0\x04\0\xff\xff\xff\xff",
            b"\x10\0\x06\0\xff\xff\xff\xff",
            b"\x20\0\x04\0\xff\xff\xff\xff",
        ]
        .concat();
        for text in [
            "user::rw-\nuser:1000:rw-\ngroup::r--\nmask::rw-\nother::r--\n",
            "u::rw-,u:1000:rw-,g::r--,m::rw-,o::r--",
            "other::r--,mask::rw-,group::r--,user:lisa:rw-:1000,user::rw-",
        ] {
            assert_eq!(to_binary(text.as_bytes(), true).unwrap().as_ref(), Some(&want), "{text}");
        }
        let plain = b"user::rw-,group::r--,other::r--";
        assert_eq!(to_binary(plain, true).unwrap(), None);
        assert!(to_binary(plain, false).unwrap().is_some());
    }

    #[test]
    fn what_is_not_clear_is_refused() {
        for bad in [
            "user::rw-,user:lisa:r--,group::r--,mask::r--,other::r--",
            "user::rw-,group::r--",
            "user::rw-,user:1:r--,group::r--,other::r--",
            "user::rwq,group::r--,other::r--",
            "nonsense",
        ] {
            assert!(to_binary(bad.as_bytes(), true).is_err(), "{bad}");
        }
    }
}
