//! Prints a whole delta between the two small releases of the targets: the seed of
//! `delta_open`, made anew when the format changes.

use std::collections::HashMap;
use std::io::{self, Write};

use varve_delta::{Contents, MakeLimits};
use varve_format::{ContentDigest, verity};

struct Both(HashMap<ContentDigest, Vec<u8>>);

impl Contents for Both {
    fn read(&self, digest: &ContentDigest) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.get(digest).cloned())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    use varve_fuzz::releases::{NEW, OLD, release};
    let all = OLD.iter().chain(&NEW).map(|bytes| (verity::content_digest(bytes), bytes.to_vec()));
    let both = Both(all.collect());
    let (delta, _) =
        varve_delta::make(&release(&OLD), &release(&NEW), &both, MakeLimits::default(), None)?;
    Ok(io::stdout().write_all(&delta)?)
}
