//! A content taken apart into leaves: bytes that are matched and coded one by one.

use std::collections::HashSet;

use varve_format::{ContentDigest, verity};

use super::matching::{Choice, OldLeaf, OldLeaves};
use crate::codec::{Format, Settings, frame};
use crate::container::{Node, Piece};
use crate::index::{Leaf, Op, Recipe, Source, Step};

/// Bytes to code, with a name to match them by.
pub(super) struct NewLeaf {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
    pub(super) digest: ContentDigest,
    /// A whole content: never made of itself.
    pub(super) whole: bool,
}

/// How a content is built of leaves.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) leaves: Vec<NewLeaf>,
    root: Plan,
    /// It looks compressed, and could not be opened.
    pub(super) closed: bool,
    first: usize,
    count: usize,
}

#[derive(Default)]
struct Plan {
    skeleton: Option<usize>,
    ops: Vec<Build>,
}

enum Build {
    Skeleton(u64),
    Leaf(usize),
    Encode(Settings, u64, Plan),
    Frame(Box<NewFrame>, Plan),
}

/// A stream whose encoder's choices are coded.
pub(super) struct NewFrame {
    pub(super) format: Format,
    pub(super) text: Vec<u8>,
    pub(super) stream: Vec<u8>,
    sequences: u64,
}

/// What the stream holds, in its order.
pub(super) enum Coded<'a> {
    /// A leaf, by number.
    Leaf(usize),
    /// A frame, after its text; with the old text and the old frame that foretells it.
    Frame(&'a NewFrame, Option<(&'a Source, Source)>),
}

/// Takes a new content apart.
pub(super) fn draft(path: &str, bytes: &[u8], node: &Node) -> Draft {
    let mut draft = Draft::default();
    let root = plan(&mut draft.leaves, path, bytes, node);
    if node.is_plain() {
        draft.leaves[0].whole = true;
        draft.closed = [&b"\xfd7zXZ"[..], b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08"]
            .iter()
            .any(|magic| bytes.starts_with(magic));
    }
    draft.root = root;
    draft.count = draft.leaves.len();
    draft
}

fn push(leaves: &mut Vec<NewLeaf>, name: String, bytes: Vec<u8>) -> usize {
    let digest = verity::content_digest(&bytes);
    leaves.push(NewLeaf { name, bytes, digest, whole: false });
    leaves.len() - 1
}

fn plan(leaves: &mut Vec<NewLeaf>, name: &str, bytes: &[u8], node: &Node) -> Plan {
    let mut plan = Plan::default();
    if node.is_plain() {
        plan.ops.push(Build::Leaf(push(leaves, name.to_owned(), bytes.to_vec())));
        return plan;
    }
    let skeleton = frames(bytes, node);
    if !skeleton.is_empty() {
        plan.skeleton = Some(push(leaves, format!("{name}!"), skeleton));
    }
    build(leaves, name, bytes, node, &mut plan);
    plan
}

/// All bytes of a node that are the container's own, with those of members in it.
fn frames(bytes: &[u8], node: &Node) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    for piece in &node.pieces {
        let part = &bytes[at..at + piece.length()];
        at += part.len();
        match piece {
            Piece::Frame { .. } => out.extend_from_slice(part),
            Piece::Member { node, .. } if !node.is_plain() => out.extend(frames(part, node)),
            _ => {}
        }
    }
    out
}

fn build(leaves: &mut Vec<NewLeaf>, name: &str, bytes: &[u8], node: &Node, out: &mut Plan) {
    let mut at = 0;
    for piece in &node.pieces {
        let part = &bytes[at..at + piece.length()];
        at += part.len();
        match piece {
            Piece::Frame { length } => match out.ops.last_mut() {
                Some(Build::Skeleton(before)) => *before += *length as u64,
                _ => out.ops.push(Build::Skeleton(*length as u64)),
            },
            Piece::Member { name: member, node, .. } => {
                let name = format!("{name}!{}", String::from_utf8_lossy(member));
                if node.is_plain() {
                    out.ops.push(Build::Leaf(push(leaves, name, part.to_vec())));
                } else {
                    build(leaves, &name, part, node, out);
                }
            }
            Piece::Stream { settings, plain, node, .. } => {
                let inner = plan(leaves, &format!("{name}!"), plain, node);
                let settings = settings.clone().expect("a new content's streams are proved");
                out.ops.push(match settings {
                    Settings::Chosen(format) => {
                        Build::Frame(Box::new(NewFrame::new(format, part, plain)), inner)
                    }
                    settings => Build::Encode(settings, plain.len() as u64, inner),
                });
            }
        }
    }
}

impl NewFrame {
    fn new(format: Format, stream: &[u8], text: &[u8]) -> Self {
        let mut sequences = 0;
        frame::read(format, stream, text, &mut |some| sequences += some.len() as u64);
        Self { format, text: text.to_vec(), stream: stream.to_vec(), sequences }
    }
}

/// The leaves of an old content, with the steps that lead to each.
pub(super) fn old_leaves(number: u32, path: &str, bytes: &[u8], node: &Node) -> Vec<OldLeaf> {
    let mut out = Vec::new();
    let start = Source { content: number, steps: Vec::new() };
    old(&mut out, &start, path, bytes, node);
    out
}

fn old(out: &mut Vec<OldLeaf>, source: &Source, name: &str, bytes: &[u8], node: &Node) {
    if node.is_plain() {
        out.push(OldLeaf::new(name.to_owned(), source.clone(), bytes));
        return;
    }
    let mut stretches = Vec::new();
    gather(out, source, name, bytes, 0, node, &mut stretches);
    if stretches.is_empty() {
        return;
    }
    let mut at = 0;
    let mut steps = Vec::new();
    let mut skeleton = Vec::new();
    for (from, to) in stretches {
        skeleton.extend_from_slice(&bytes[from..to]);
        steps.push(((from - at) as u64, (to - from) as u64));
        at = to;
    }
    let mut source = source.clone();
    source.steps.push(Step::Gather(steps));
    out.push(OldLeaf::new(format!("{name}!"), source, &skeleton));
}

/// Leaves within `part`, which stands at `base` of the source; the node's own stretches.
fn gather(
    out: &mut Vec<OldLeaf>,
    source: &Source,
    name: &str,
    part: &[u8],
    base: usize,
    node: &Node,
    stretches: &mut Vec<(usize, usize)>,
) {
    let mut at = 0;
    for piece in &node.pieces {
        let (from, to) = (at, at + piece.length());
        at = to;
        let inside = |steps: &[Step]| {
            let mut source = source.clone();
            source.steps.push(Step::Gather(vec![((base + from) as u64, (to - from) as u64)]));
            source.steps.extend_from_slice(steps);
            source
        };
        match piece {
            Piece::Frame { .. } => match stretches.last_mut() {
                Some(last) if last.1 == base + from => last.1 = base + to,
                _ => stretches.push((base + from, base + to)),
            },
            Piece::Member { name: member, node, .. } => {
                let name = format!("{name}!{}", String::from_utf8_lossy(member));
                if node.is_plain() {
                    out.push(OldLeaf::new(name, inside(&[]), &part[from..to]));
                } else {
                    gather(out, source, &name, &part[from..to], base + from, node, stretches);
                }
            }
            Piece::Stream { format, plain, node, .. } => {
                let source = inside(&[Step::Decode(*format, plain.len() as u64)]);
                old(out, &source, &format!("{name}!"), plain, node);
            }
        }
    }
}

impl Draft {
    /// Renumbers the leaves for a list in which `by` others stand before.
    pub(super) fn shift(&mut self, by: usize) {
        self.first = by;
    }

    /// Numbers of its leaves.
    pub(super) fn all_leaves(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.count
    }

    /// What the stream holds of it.
    pub(super) fn coded<'a>(&'a self, choices: &'a [Choice]) -> Vec<Coded<'a>> {
        let mut out = Vec::new();
        self.coded_of(&self.root, choices, &mut out);
        out
    }

    fn coded_of<'a>(&'a self, plan: &'a Plan, choices: &'a [Choice], out: &mut Vec<Coded<'a>>) {
        out.extend(plan.skeleton.map(|at| Coded::Leaf(at + self.first)));
        for build in &plan.ops {
            match build {
                Build::Leaf(at) => {
                    let at = at + self.first;
                    if matches!(choices[at], Choice::Against(_) | Choice::Alone) {
                        out.push(Coded::Leaf(at));
                    }
                }
                Build::Encode(.., inner) => self.coded_of(inner, choices, out),
                Build::Frame(frame, inner) => {
                    self.coded_of(inner, choices, out);
                    out.push(Coded::Frame(frame, self.foretelling(frame.format, inner, choices)));
                }
                Build::Skeleton(_) => {}
            }
        }
    }

    /// The old text that the text of this plan is coded against, and its frame.
    fn foretelling<'a>(
        &self,
        format: Format,
        inner: &Plan,
        choices: &'a [Choice],
    ) -> Option<(&'a Source, Source)> {
        let [Build::Leaf(at)] = inner.ops[..] else { return None };
        let Choice::Against(text) = &choices[at + self.first] else { return None };
        let (last, steps) = text.steps.split_last()?;
        let opened = matches!(last, Step::Decode(of, _) if *of == format);
        (opened && inner.skeleton.is_none())
            .then(|| (text, Source { content: text.content, steps: steps.to_vec() }))
    }

    /// The recipe for the index; `unread`: old frames that foretell nothing.
    pub(super) fn recipe(
        &self,
        leaves: &[NewLeaf],
        choices: &[Choice],
        unread: &HashSet<Source>,
    ) -> Recipe {
        self.recipe_of(&self.root, leaves, choices, unread)
    }

    fn recipe_of(
        &self,
        plan: &Plan,
        leaves: &[NewLeaf],
        choices: &[Choice],
        unread: &HashSet<Source>,
    ) -> Recipe {
        let leaf = |at: usize| {
            let length = leaves[at].bytes.len() as u64;
            let old = match &choices[at] {
                Choice::Against(source) => Some(source.clone()),
                _ => None,
            };
            Leaf { length, old }
        };
        let ops = plan.ops.iter().map(|build| match build {
            Build::Skeleton(length) => Op::Skeleton(*length),
            Build::Leaf(at) => match &choices[at + self.first] {
                Choice::Content(number) => Op::Content(*number),
                Choice::Same(source) => {
                    Op::Copy(source.clone(), leaves[at + self.first].bytes.len() as u64)
                }
                _ => Op::Leaf(leaf(at + self.first)),
            },
            Build::Encode(settings, _, inner) => {
                Op::Encode(settings.clone(), self.recipe_of(inner, leaves, choices, unread))
            }
            Build::Frame(frame, inner) => {
                let old = self.foretelling(frame.format, inner, choices).map(|(_, frame)| frame);
                let old = old.filter(|frame| !unread.contains(frame));
                Op::Frame(frame.format, old, self.recipe_of(inner, leaves, choices, unread))
            }
        });
        Recipe { skeleton: plan.skeleton.map(|at| leaf(at + self.first)), ops: ops.collect() }
    }

    /// Bytes of memory that building it takes on a device, beside the model.
    pub(super) fn memory(
        &self,
        size: u64,
        leaves: &[NewLeaf],
        choices: &[Choice],
        old: &OldLeaves,
    ) -> u64 {
        fn streams(plan: &Plan) -> (u64, u64) {
            plan.ops.iter().fold((0, 0), |(held, encoder), build| match build {
                Build::Encode(settings, plain, inner) => {
                    let (inner_held, inner_encoder) = streams(inner);
                    (
                        held + plain + inner_held,
                        encoder.max(settings.memory(*plain)).max(inner_encoder),
                    )
                }
                Build::Frame(frame, inner) => {
                    let (inner_held, inner_encoder) = streams(inner);
                    let text = frame.text.len() as u64;
                    // The old text and frame, the frame's matches, the coder.
                    let coder = text + frame.stream.len() as u64 + frame.sequences * 12 + (3 << 20);
                    (held + text + inner_held, encoder.max(coder).max(inner_encoder))
                }
                _ => (held, encoder),
            })
        }
        let (held, encoder) = streams(&self.root);
        let references = self.all_leaves().map(|at| match &choices[at] {
            Choice::Against(source) => {
                let length = leaves[at].bytes.len() as u64;
                // A field takes 16 bytes; every third byte of a module belongs to one.
                let fields = match leaves[at].bytes.get(..18) {
                    Some([0x7f, b'E', b'L', b'F', .., 1, _]) => length * 2,
                    Some([0x7f, b'E', b'L', b'F', ..]) => length,
                    _ => 0,
                };
                old.memory(source) + fields
            }
            _ => 0,
        });
        size + held + references.max().unwrap_or(0).max(encoder)
    }
}
