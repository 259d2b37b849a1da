//! What the device's owner lets a release hold, whoever signed it.
//!
//! ```toml
//! [policy]
//! setuid = ["/usr/bin/su", "/usr/bin/passwd"]   # or "allow" (the default), "deny"
//! devices = "deny"                              # or "allow", or a list of paths
//! xattrs = ["user.*", "security.capability", "system.posix_acl_*"]
//! ```
//!
//! [`crate::policy`] holds releases against it.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use varve_format::TreePath;

/// What a release may hold.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Policy {
    /// Programs that run with more rights than their caller: setuid, setgid, or with
    /// file capabilities.
    pub setuid: Allowed<true>,
    /// Device nodes elsewhere than in `/dev`, which the kernel's own covers.
    pub devices: Allowed<false>,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// All, none, or those at these paths. `DEFAULT`: whether all are allowed when nothing is
/// said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Allowed<const DEFAULT: bool> {
    /// `"allow"`
    All,
    /// `"deny"`
    None,
    /// `["/usr/bin/su"]`
    At(Vec<TreePath>),
}

impl<const DEFAULT: bool> Default for Allowed<DEFAULT> {
    fn default() -> Self {
        if DEFAULT { Self::All } else { Self::None }
    }
}

impl<const DEFAULT: bool> Allowed<DEFAULT> {
    /// Whether such a thing may stand at `path`.
    pub fn at(&self, path: &TreePath) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::At(paths) => paths.contains(path),
        }
    }
}

const EXPECTED: &str = "\"allow\", \"deny\" or a list of paths such as [\"/usr/bin/su\"]";

impl<'de, const DEFAULT: bool> Deserialize<'de> for Allowed<DEFAULT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<const DEFAULT: bool>;

        impl<'de, const DEFAULT: bool> Visitor<'de> for Reader<DEFAULT> {
            type Value = Allowed<DEFAULT>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                match text {
                    "allow" => Ok(Allowed::All),
                    "deny" => Ok(Allowed::None),
                    _ => Err(E::custom(format!("{text:?} is not known: {EXPECTED} is expected"))),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut paths = Vec::new();
                while let Some(text) = list.next_element::<String>()? {
                    let path = text.strip_prefix('/').and_then(|rest| {
                        TreePath::new(rest.as_bytes()).ok().filter(|path| !path.is_root())
                    });
                    paths.push(path.ok_or_else(|| {
                        A::Error::custom(format!(
                            "{text:?} is no path: an absolute path, without . and .., is expected"
                        ))
                    })?);
                }
                Ok(Allowed::At(paths))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

/// Names of extended attributes that a release may set; one that ends with `*` stands for
/// all that begin so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Xattrs(Vec<String>);

/// Other attributes would give meanings that the publisher's tools did not record, or that
/// are this device's own to decide.
const XATTRS: [&str; 8] = [
    "user.*",
    "security.capability",
    "security.selinux",
    "security.SMACK64",
    "security.SMACK64EXEC",
    "security.apparmor",
    "security.ima",
    "system.posix_acl_*",
];

impl Default for Xattrs {
    fn default() -> Self {
        Self(XATTRS.map(str::to_owned).to_vec())
    }
}

impl Xattrs {
    /// Whether a release may set the attribute `name`.
    pub fn allows(&self, name: &[u8]) -> bool {
        self.0.iter().any(|known| match known.strip_suffix('*') {
            Some(start) => name.starts_with(start.as_bytes()),
            None => name == known.as_bytes(),
        })
    }
}

impl<'de> Deserialize<'de> for Xattrs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        for name in &names {
            // Attributes have a namespace: "*" alone, or "trusted*", is meant by nobody.
            let start = name.strip_suffix('*').unwrap_or(name);
            let namespace = ["user.", "security.", "system.", "trusted."];
            if start.contains('*') || !namespace.iter().any(|space| start.starts_with(space)) {
                return Err(D::Error::custom(format!(
                    "{name:?} is no attribute: a name such as \"security.capability\" or \"user.*\" \
                     is expected"
                )));
            }
        }
        Ok(Self(names))
    }
}
