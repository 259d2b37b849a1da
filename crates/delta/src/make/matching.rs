//! Which old bytes a new leaf is coded against: the same ones, else those of the same
//! name, of the same name but for numbers (versions), of the same file name.

use std::collections::HashMap;

use varve_format::{ContentDigest, verity};

use super::MakeError;
use super::draft::NewLeaf;
use crate::address::{Anatomy, btf};
use crate::codec::Format;
use crate::index::{Source, Step};
use crate::source::{Contents, Reader};

/// Bytes of the old release.
pub(super) struct OldLeaf {
    name: String,
    source: Source,
    length: usize,
    digest: ContentDigest,
    /// The first bytes.
    head: [u8; 4],
    relocatable: bool,
}

impl OldLeaf {
    pub(super) fn new(name: String, source: Source, bytes: &[u8]) -> Self {
        let mut head = [0; 4];
        let most = bytes.len().min(4);
        head[..most].copy_from_slice(&bytes[..most]);
        let relocatable = &head == b"\x7fELF" && bytes.get(16) == Some(&1);
        let digest = verity::content_digest(bytes);
        Self { name, source, length: bytes.len(), digest, head, relocatable }
    }
}

/// What becomes of a new leaf.
pub(super) enum Choice {
    /// It is a content of the new release.
    Content(u32),
    /// It is old bytes.
    Same(Source),
    /// It is coded against old bytes.
    Against(Source),
    /// It is coded alone.
    Alone,
}

/// The old release, seen through.
pub(super) struct OldLeaves {
    leaves: Vec<OldLeaf>,
    by_digest: HashMap<ContentDigest, usize>,
    by_name: HashMap<String, Vec<usize>>,
    sizes: HashMap<u32, u64>,
}

impl OldLeaves {
    pub(super) fn new(leaves: impl Iterator<Item = OldLeaf>) -> Self {
        let leaves: Vec<OldLeaf> = leaves.collect();
        let mut by_name: HashMap<String, Vec<usize>> = HashMap::new();
        let mut by_digest = HashMap::new();
        let mut sizes: HashMap<u32, u64> = HashMap::new();
        for (at, leaf) in leaves.iter().enumerate() {
            by_digest.entry(leaf.digest).or_insert(at);
            for key in keys(&leaf.name) {
                by_name.entry(key).or_default().push(at);
            }
            *sizes.entry(leaf.source.content).or_default() += leaf.length as u64;
        }
        Self { leaves, by_digest, by_name, sizes }
    }

    /// Whether an old content of this path's name is an xz stream: the new one's text will
    /// be coded against that one's.
    pub(super) fn foretell(&self, path: &str) -> bool {
        let opened = |&at: &usize| {
            matches!(
                self.leaves[at].source.steps[..],
                [Step::Gather(_), Step::Decode(Format::Xz, _)]
            )
        };
        let named = |key| self.by_name.get(&key).is_some_and(|all| all.iter().any(opened));
        keys(&format!("{path}!")).into_iter().any(named)
    }

    /// `own`: the contents of the new release.
    pub(super) fn choose(&self, leaf: &NewLeaf, own: &HashMap<ContentDigest, u32>) -> Choice {
        let is_skeleton = leaf.name.ends_with('!') && !leaf.whole;
        if !leaf.whole
            && !is_skeleton
            && let Some(&number) = own.get(&leaf.digest)
        {
            return Choice::Content(number);
        }
        if !is_skeleton && let Some(&at) = self.by_digest.get(&leaf.digest) {
            return Choice::Same(self.leaves[at].source.clone());
        }
        for key in keys(&leaf.name) {
            let same_kind = |at: &&usize| {
                let old = &self.leaves[**at];
                (old.head == *b"\x7fELF") == leaf.bytes.starts_with(b"\x7fELF") && old.length > 0
            };
            let candidates = self.by_name.get(&key).into_iter().flatten().filter(same_kind);
            let nearest =
                candidates.min_by_key(|&&at| self.leaves[at].length.abs_diff(leaf.bytes.len()));
            if let Some(&at) = nearest {
                return Choice::Against(self.leaves[at].source.clone());
            }
        }
        Choice::Alone
    }

    /// Memory to hold what the source leads to, and what it lies in.
    pub(super) fn memory(&self, source: &Source) -> u64 {
        let inside: u64 = source
            .steps
            .iter()
            .map(|step| match step {
                crate::index::Step::Decode(_, length) => *length,
                crate::index::Step::Gather(parts) => parts.iter().map(|p| p.1).sum(),
            })
            .sum();
        inside + self.sizes.get(&source.content).copied().unwrap_or(0) / 3
    }
}

/// Names by which a leaf is found, the most telling first.
fn keys(name: &str) -> [String; 3] {
    let normal = normal(name);
    let last = format!("\0{}", file_name(&normal));
    [format!("={name}"), normal, last]
}

/// The last component of a path, with what lies in the file.
pub(super) fn file_name(path: &str) -> &str {
    let file = path.split('!').next().unwrap_or(path);
    let start = file.rfind('/').map_or(0, |at| at + 1);
    &path[start..]
}

/// A path with each run of digits as one sign: versions change, files stay.
fn normal(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if !c.is_ascii_digit() {
            out.push(c);
        } else if !out.ends_with('#') {
            out.push('#');
        }
    }
    out
}

/// How many types the BTF of the old kernel has, as its modules tell: a module's own
/// types are numbered on from there.
pub(super) fn base_types(
    old: &OldLeaves,
    contents: &dyn Contents,
    table: &[(ContentDigest, u64)],
) -> Result<u32, MakeError> {
    let mut reader = Reader::new(contents, table);
    let mut base = 0;
    for leaf in old.leaves.iter().filter(|l| l.relocatable).take(60) {
        let bytes = reader.bytes(&leaf.source)?;
        let anatomy = Anatomy::of(&bytes, 0);
        let Some(at) = anatomy.names.iter().position(|name| name == b".BTF") else { continue };
        let section = anatomy.sections[at];
        let (from, to) = (section.offset as usize, (section.offset + section.size) as usize);
        if let Some((count, highest)) = bytes.get(from..to).and_then(btf::extent) {
            base = base.max(highest.saturating_sub(count));
        }
    }
    Ok(base)
}
