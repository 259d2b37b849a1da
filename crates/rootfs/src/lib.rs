//! How a deployment is held on disk.
//!
//! ```text
//! Store -- records, layers, trees, incoming
//!   layout::plan    base deployment + new manifest -> StagePlan (pure data)
//!   layout::stage   StagePlan -> Staged -> verify -> Verified -> commit -> Deployment
//!   merge           top layers of a stack -> one new layer -> the record replaced
//!   own             the user's layers: made, laid over a deployment, taken off
//!   compose         a directory, an archive, a package -> a layer over a stack
//!   given           a layer as a manifest: exported and imported
//!   collect         what no record and no mount names -> gone
//!   state           what outlives releases
//!   records         the records' copies, and what a repair puts back from them
//! ```

#![forbid(unsafe_code)]

pub mod assemble;
pub mod collect;
pub mod compose;
pub mod content;
mod fold;
pub mod given;
mod layer;
pub mod layout;
pub mod locate;
pub mod merge;
pub mod mount;
pub mod own;
mod pool;
pub mod reconcile;
pub mod records;
mod report;
pub mod resolve;
mod sources;
pub mod space;
pub mod stage;
pub mod state;
pub mod store;
pub mod three_way;
mod tree;
pub mod verify;
pub mod view;

pub use layout::{Needed, Request, RootLayout, SourceCheck, StagePlan};
pub use stage::{Details, Staged, Verified};
pub use store::{Deployment, Listing, Store, StoreError, Strange};
