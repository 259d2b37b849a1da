//! Every target on its seeds and on copies of them, bent in ways that are the same each
//! time: no panic, no more memory than a small device has, no input that takes long.
//!
//! `VARVE_FUZZ_SECONDS=600 cargo nextest run -p varve-fuzz` goes on for longer, with other
//! inputs each time.

use std::time::{Duration, Instant};

use varve_fuzz::{TARGETS, Target};

/// All that one target may take: this program, a decoder's window of 128 MiB, and what it
/// reads and makes. Less than the least that a device which runs a desktop has.
const MEMORY: u64 = 1 << 30;
/// One input, unoptimised and on a busy machine.
const LONGEST: Duration = Duration::from_secs(5);

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end.max(1)
    }

    fn bend(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(bytes.len());
        match self.below(8) {
            _ if bytes.is_empty() => bytes.push(self.below(256) as u8),
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'/', b'0', b'9'][self.below(8)],
            2 => bytes.truncate(at),
            3 => {
                let end = (at + 1 + self.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let end = (at + 1 + self.below(64)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                let to = self.below(bytes.len());
                bytes.splice(to..to, part);
            }
            // What a length or an offset may be at its worst.
            5 => {
                let value = [0, u64::MAX, 1 << 31, 1 << 62, 4096][self.below(5)].to_le_bytes();
                let width = [1, 2, 4, 8][self.below(4)];
                for (place, byte) in bytes[at..].iter_mut().zip(&value[..width]) {
                    *place = *byte;
                }
            }
            6 => {
                let number = ["-1", "0", "18446744073709551616", "99999999999", "1e9"];
                bytes.splice(at..at, number[self.below(5)].bytes());
            }
            _ if other.is_empty() => {}
            _ => {
                let from = self.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
}

fn replay(name: &str) {
    let Target { run, slow, .. } = varve_fuzz::target(name).unwrap();
    let limit = rustix::process::Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) };
    rustix::process::setrlimit(rustix::process::Resource::As, limit).unwrap();
    let mut seeds: Vec<_> = std::fs::read_dir(varve_fuzz::seeds().join(name))
        .unwrap_or_else(|error| panic!("{name} has no seeds: {error}"))
        .map(|entry| entry.unwrap().path())
        .collect();
    seeds.sort();
    let seeds: Vec<Vec<u8>> = seeds.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(!seeds.is_empty(), "{name} has no seeds");

    let longer = std::env::var("VARVE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let time = longer.map_or(Duration::from_secs(3), Duration::from_secs);
    let rounds = if longer.is_some() {
        usize::MAX
    } else if slow {
        400
    } else {
        4000
    };
    let began = Instant::now();
    let seed = longer.map_or(1, |_| u64::from(std::process::id()));
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ seed);
    let mut tried = 0_u64;
    let mut give = |bytes: &[u8]| {
        let began = Instant::now();
        // What made it fail is seen in a backtrace alone, so it is shown first.
        let told = std::panic::catch_unwind(|| run(bytes));
        if told.is_err() || began.elapsed() > LONGEST {
            let hex: String = bytes.iter().take(4096).map(|b| format!("{b:02x}")).collect();
            panic!("{name} on {} bytes, {:?}: {hex}", bytes.len(), began.elapsed());
        }
        tried += 1;
    };
    seeds.iter().for_each(|seed| give(seed));
    for _ in 0..rounds {
        if began.elapsed() > time {
            break;
        }
        let mut bytes = seeds[random.below(seeds.len())].clone();
        let other = &seeds[random.below(seeds.len())];
        for _ in 0..=random.below(4) {
            random.bend(&mut bytes, other);
        }
        give(&bytes);
    }
    println!("{name}: {tried} inputs in {:.1} s", began.elapsed().as_secs_f64());
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                replay(stringify!($name));
            }
        )*

        #[test]
        fn no_target_is_left_out() {
            let here = [$(stringify!($name)),*];
            let all: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(here[..], all[..]);
            let bytes = std::fs::read_to_string(varve_fuzz::seeds().join("../Cargo.toml")).unwrap();
            for name in all {
                assert!(bytes.contains(&format!("name = \"{name}\"")), "{name} is not in fuzz/Cargo.toml");
            }
        }
    };
}

targets! {
    manifest pack_index release_record deployment_record layer_record layer_file selection config
    history boot_report command_line mountinfo delta_index delta_open delta_apply container delta_frame
    stored worker_answer rejected three_way tar oci tuf
}

#[test]
fn the_seeds_stay_small() {
    let mut bytes = 0;
    for folder in std::fs::read_dir(varve_fuzz::seeds()).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            bytes += file.unwrap().metadata().unwrap().len();
        }
    }
    assert!(bytes < 200_000, "{bytes} bytes of seeds");
}
