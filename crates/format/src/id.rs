//! Digests and names. Each is a type of its own: a release digest is never taken
//! for a content digest, a layer's name never for a deployment's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a digest or a name was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum IdError {
    /// Not 64 lower-case hexadecimal digits.
    #[error("{text:?} is not a digest: 64 hexadecimal digits in lower case are expected")]
    Digest {
        /// What stood there.
        text: String,
    },
    /// Not a name as Varve allows it.
    #[error(
        "{text:?} is not a valid {what} name: 1 to 100 characters of A-Z a-z 0-9 . _ + ~ -, not starting with a dot or a dash"
    )]
    Name {
        /// Which kind of name.
        what: &'static str,
        /// What stood there.
        text: String,
    },
}

/// Writes bytes as lower-case hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Reads exactly 32 bytes from 64 lower-case hexadecimal digits.
pub fn digest_from_hex(text: &[u8]) -> Result<[u8; 32], IdError> {
    let refuse = || IdError::Digest {
        text: String::from_utf8_lossy(&text[..text.len().min(80)]).into_owned(),
    };
    if text.len() != 64 {
        return Err(refuse());
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(text.chunks_exact(2)) {
        let (Some(high), Some(low)) = (hex_value(pair[0]), hex_value(pair[1])) else {
            return Err(refuse());
        };
        *byte = high << 4 | low;
    }
    Ok(digest)
}

macro_rules! digest_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The 64 lower-case hexadecimal digits.
            pub fn to_hex(&self) -> String {
                to_hex(&self.0)
            }

            /// The first twelve digits, for people to read.
            pub fn short(&self) -> String {
                to_hex(&self.0[..6])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                digest_from_hex(text.as_bytes()).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.to_hex())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

digest_type! {
    /// The identity of a file's content: its fs-verity digest (SHA-256, blocks of
    /// 4 KiB, no salt), as the kernel's FS_IOC_MEASURE_VERITY gives it.
    ContentDigest
}
digest_type! {
    /// A plain SHA-256 of some bytes (a pack, an index, a frame, a document).
    Sha256Digest
}
digest_type! {
    /// The identity of a release: the SHA-256 of its manifest's text.
    ReleaseDigest
}

impl Sha256Digest {
    /// Digests the bytes.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest;
        Self(sha2::Sha256::digest(bytes).into())
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The name as text: safe as one component of a path.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), self.0)
            }
        }

        impl AsRef<std::path::Path> for $name {
            fn as_ref(&self) -> &std::path::Path {
                std::path::Path::new(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                if is_name(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError::Name { what: $what, text: text.chars().take(120).collect() })
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name_type! {
    /// A release's name for people, such as `debian-13.2`; unique in a repository.
    ReleaseName, "release"
}
name_type! {
    /// A deployment's name on the device; one component below `deployments/`.
    DeploymentName, "deployment"
}
name_type! {
    /// A layer's (or tree's) name on the device; one component below `layers/` or `trees/`.
    LayerName, "layer"
}

/// One component, printable on any terminal, that no file system, URL or kernel
/// command line treats specially (no `/`, `:`, `,` or white space).
fn is_name(text: &str) -> bool {
    (1..=100).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+~-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_safe_component() {
        for good in ["debian-13.2", "a", "6.12+deb13~1_x"] {
            assert!(good.parse::<ReleaseName>().is_ok(), "{good}");
        }
        let long = "x".repeat(101);
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "a\nb", "-x", ".hidden", "é", &long] {
            assert!(bad.parse::<DeploymentName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn digests_round_trip_and_refuse_other_text() {
        let digest = Sha256Digest::of(b"abc");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for bad in ["", "zz", &digest.to_hex().to_uppercase(), &digest.to_hex()[1..]] {
            assert!(bad.parse::<Sha256Digest>().is_err());
        }
    }
}
