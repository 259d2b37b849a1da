//! A disk with a cache that a power cut empties: what was not flushed is lost, in part.
//!
//! ```text
//! write --> cache (at most 64 MiB, the oldest goes to the platter by itself)
//! flush --> all of the cache is on the platter
//! cut   --> of each write in the cache: there, gone, or some of its 4-KiB blocks
//! ```
//!
//! A machine that is emulated writes seldom, and flushes at once: a cut by the clock alone would
//! find the cache empty. So the disk itself is told to fail after some more writes.
//!
//! Which writes survive a cut follows from the seed. A block of 4 KiB is whole: torn smaller,
//! ext4's own superblock does not bear it (`docs/powercut.md`).

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rand::Rng;
use rand::rngs::StdRng;

use crate::error::{At, Result, RigError};
use crate::served::{Backing, Served, lock};

/// What the cache holds, in bytes.
const CACHE: u64 = 64 << 20;
/// What is never torn, in bytes.
const BLOCK: usize = 4096;

/// Such a disk, as long as it stands.
#[derive(Debug)]
pub struct LossyDisk {
    cache: Arc<Mutex<Cache>>,
    served: Served,
}

#[derive(Debug)]
struct Cache {
    /// What a read sees.
    image: File,
    waiting: VecDeque<Waiting>,
    bytes: u64,
    failed: Option<String>,
    /// So many writes more, and the power is gone.
    left: Option<u32>,
}

#[derive(Debug)]
struct Waiting {
    offset: u64,
    old: Vec<u8>,
    new: Vec<u8>,
}

/// What a cut did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lost {
    /// Writes that were in the cache.
    pub waiting: usize,
    /// Those of them that are gone, or torn.
    pub lost: usize,
}

impl LossyDisk {
    /// Serves the image `image`, which is changed, in the directory `mount`.
    pub fn start(image: &Path, mount: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(image).at("open", image)?;
        let size = file.metadata().at("examine", image)?.len();
        let cache =
            Cache { image: file, waiting: VecDeque::new(), bytes: 0, failed: None, left: None };
        let cache = Arc::new(Mutex::new(cache));
        let served = Served::start(&cache, size, mount)?;
        Ok(Self { cache, served })
    }

    /// The file to give to a machine.
    pub fn file(&self) -> &Path {
        self.served.file()
    }

    /// Pulls the plug after so many writes more: what comes later reaches neither cache nor
    /// platter.
    pub fn fail_after(&self, writes: u32) {
        lock(&self.cache).left = Some(writes);
    }

    /// Whether that has come.
    pub fn has_failed(&self) -> bool {
        lock(&self.cache).left == Some(0)
    }

    /// The power is gone: nobody writes any more. Of what was not flushed a random part
    /// is there.
    pub fn cut(&self, random: &mut StdRng) -> Result<Lost> {
        lock(&self.cache).cut(random)
    }
}

impl Cache {
    fn cut(&mut self, random: &mut StdRng) -> Result<Lost> {
        if let Some(why) = self.failed.take() {
            return Err(RigError::Device(why));
        }
        self.left = None;
        let waiting: Vec<Waiting> = self.waiting.drain(..).collect();
        self.bytes = 0;
        let write = |bytes: &[u8], offset: u64| {
            self.image.write_all_at(bytes, offset).at("write", "the disk")
        };
        for one in waiting.iter().rev() {
            write(&one.old, one.offset)?;
        }
        // Some cuts lose all, some nothing, most a part.
        let survive = [0.0, 0.3, 0.7, 0.95, 1.0][random.random_range(0..5)];
        let mut lost = Lost { waiting: waiting.len(), lost: 0 };
        for one in &waiting {
            if random.random_bool(survive) {
                write(&one.new, one.offset)?;
                continue;
            }
            lost.lost += 1;
            if survive > 0.0 && random.random_bool(0.3) {
                for (number, block) in one.new.chunks(BLOCK).enumerate() {
                    if random.random_bool(0.5) {
                        write(block, one.offset + (number * BLOCK) as u64)?;
                    }
                }
            }
        }
        Ok(lost)
    }
}

impl Backing for Cache {
    fn read(&mut self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.image.read_exact_at(bytes, offset).at("read", "the disk")
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        match &mut self.left {
            Some(0) => return Ok(()),
            Some(left) => *left -= 1,
            None => {}
        }
        let mut old = vec![0; bytes.len()];
        self.image.read_exact_at(&mut old, offset).at("read", "the disk")?;
        self.image.write_all_at(bytes, offset).at("write", "the disk")?;
        self.bytes += bytes.len() as u64;
        self.waiting.push_back(Waiting { offset, old, new: bytes.to_vec() });
        while self.bytes > CACHE
            && let Some(oldest) = self.waiting.pop_front()
        {
            self.bytes -= oldest.new.len() as u64;
        }
        Ok(())
    }

    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        let zeros = vec![0; 64 << 10];
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let want = zeros.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            self.write(&zeros[..want], at)?;
            at += want as u64;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.left == Some(0) {
            return Ok(());
        }
        self.waiting.clear();
        self.bytes = 0;
        Ok(())
    }

    fn failed(&mut self, why: String) {
        self.failed = Some(why);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn bytes(cache: &Cache) -> [u8; 3] {
        let mut bytes = [0; 3];
        for (number, byte) in bytes.iter_mut().enumerate() {
            cache.image.read_exact_at(std::slice::from_mut(byte), 4096 * number as u64).unwrap();
        }
        bytes
    }

    /// What was flushed is always there; of the rest each combination comes.
    #[test]
    fn a_cut_takes_what_was_not_flushed_and_nothing_else() {
        let image = tempfile::tempfile().unwrap();
        image.set_len(3 * 4096).unwrap();
        let mut cache =
            Cache { image, waiting: VecDeque::new(), bytes: 0, failed: None, left: None };
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            for block in 0..3 {
                cache.write(&[1; 4096], 4096 * block).unwrap();
            }
            cache.flush().unwrap();
            cache.write(&[2; 4096], 4096).unwrap();
            cache.write(&[3; 4096], 4096).unwrap();
            cache.zero(2 * 4096, 4096).unwrap();
            assert_eq!(bytes(&cache), [1, 3, 0], "the machine sees what it wrote");
            let shared = Arc::new(Mutex::new(cache));
            cut_of(&shared, seed);
            cache = Arc::into_inner(shared).unwrap().into_inner().unwrap();
            let found = bytes(&cache);
            assert_eq!(found[0], 1);
            seen.insert(found);
        }
        for one in [1, 2, 3] {
            for other in [0, 1] {
                assert!(seen.contains(&[1, one, other]), "{one} {other} of {seen:?}");
            }
        }
    }

    /// What comes after the plug is pulled is not there, flushed or not.
    #[test]
    fn a_disk_that_has_failed_takes_nothing() {
        let image = tempfile::tempfile().unwrap();
        image.set_len(3 * 4096).unwrap();
        let mut cache =
            Cache { image, waiting: VecDeque::new(), bytes: 0, failed: None, left: Some(1) };
        cache.write(&[1; 4096], 0).unwrap();
        cache.write(&[2; 4096], 4096).unwrap();
        cache.flush().unwrap();
        assert_eq!((bytes(&cache), cache.waiting.len()), ([1, 0, 0], 1));
    }

    fn cut_of(cache: &Arc<Mutex<Cache>>, seed: u64) {
        lock(cache).cut(&mut StdRng::seed_from_u64(seed)).unwrap();
    }
}
