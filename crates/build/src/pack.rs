//! A pack's place in the repository: written under a temporary name, then named.

use varve_pack::Written;
use varve_sys::{Dir, NewFile, durable};

use crate::error::Result;

/// The file under way.
const TEMPORARY: &str = ".pack.new";

/// An empty file for the pack that is being made; what an earlier build left goes.
pub(crate) fn begin(packs: &Dir) -> Result<NewFile> {
    packs.remove_all(TEMPORARY)?;
    Ok(packs.create_file(TEMPORARY, 0o644)?)
}

/// Gives pack and index their names, durably; without a pack the temporary goes. Nothing
/// reads them until a record names them; the same bytes may be there from a build that was
/// killed.
pub(crate) fn commit(packs: &Dir, file: &NewFile, written: Option<&Written>) -> Result<()> {
    let Some(Written { reference, index }) = written else {
        return Ok(packs.remove_all(TEMPORARY)?);
    };
    file.sync()?;
    let id = reference.id;
    durable::replace_file(packs, &format!("{id}.idx"), index, 0o644)?;
    packs.rename_over(TEMPORARY, packs, format!("{id}.pack"))?;
    durable::sync_directory(packs)?;
    Ok(())
}
