//! Deltas between two releases that see inside compressed files.

mod address;
mod apply;
mod blob;
mod codec;
mod coder;
#[cfg(feature = "make")]
mod container;
mod file;
mod index;
#[cfg(feature = "make")]
mod make;
mod source;

pub use apply::{Applied, ApplyError, Delta, Left, Limits, Offer, Sink, header};
pub use file::{FileError, Header, MAGIC};
pub use source::{Contents, SourceError};
#[cfg(feature = "make")]
pub use container::Limits as ContainerLimits;
#[cfg(feature = "make")]
pub use make::{GroupReport, MakeError, MakeLimits, Report, make};
#[doc(hidden)]
#[cfg(feature = "make")]
pub mod experiment {
    use crate::{address::*, blob::*, coder::*};
    pub fn pairs(pairs: &[(Vec<u8>, Vec<u8>)], base: u32) {
        let t = std::time::Instant::now();
        let mut coder = BlobCoder::new(22);
        let mut e = Encoder::new();
        let mut als = vec![];
        let (mut sort, mut al) = (0.0, 0.0);
        for (o, n) in pairs {
            let oa = Anatomy::of(o, base);
            let na = Anatomy::of(n, base);
            if pairs.len() < 5 {
                println!("fields {} {}", oa.fields.len(), na.fields.len());
            }
            let t = std::time::Instant::now();
            let s = align::Sorted::new(o, &oa);
            sort += t.elapsed().as_secs_f64();
            let t = std::time::Instant::now();
            let a = align::align(&s, o, &oa, n, &na);
            al += t.elapsed().as_secs_f64();
            if std::env::var("G").is_ok() {
                let mut m = std::collections::BTreeMap::new();
                let mut at = 0;
                let mut add = |from: u32, to: u32| {
                    let s = na.sections.iter().position(|s| s.stored && s.size > 0 && u64::from(from) >= s.offset && u64::from(from) < s.offset + s.size);
                    *m.entry(s).or_insert(0) += to - from;
                };
                for b in &a.blocks { if b.new > at { add(at, b.new); } at = b.new + b.length; }
                add(at, n.len() as u32);
                for (s, c) in m { if c > 3000 { println!("gap {} {c}", s.map_or("-".into(), |s| String::from_utf8_lossy(&na.names[s]).into_owned())); } }
            }
            als.push((oa, a));
        }
        println!("aligned {:?} sort {sort:.1} align {al:.1} blocks {}", t.elapsed(), als.iter().map(|a| a.1.blocks.len()).sum::<usize>());
        let t = std::time::Instant::now();
        for ((o, n), (oa, a)) in pairs.iter().zip(&als) {
            let mut n = n.clone();
            let before = e.written();
            coder.code(&mut e, Some(Reference { bytes: o, anatomy: oa }), a, &mut n).unwrap();
            if std::env::var("V").is_ok() {
                println!("{} {}", e.written() - before, n.len());
            }
        }
        println!("moved+blocks {} - {} runs {} hits {} misses {} gaps {} fieldflags {} fields {:?}", e.costs[0] as u64, e.costs[1] as u64, e.costs[2] as u64, e.costs[3] as u64, e.costs[4] as u64, e.costs[5] as u64, e.costs[6] as u64,  e.costs[8..20].iter().map(|c|*c as u64).collect::<Vec<_>>());
        let bytes = e.finish();
        println!("coded {:?} {}", t.elapsed(), bytes.len());
        let t = std::time::Instant::now();
        let mut coder = BlobCoder::new(22);
        let mut d = Decoder::new(&bytes);
        for ((o, n), (oa, _)) in pairs.iter().zip(&als) {
            let mut out = vec![0; n.len()];
            coder.code(&mut d, Some(Reference { bytes: o, anatomy: oa }), &Alignment::default(), &mut out).unwrap();
            assert!(out == *n);
        }
        println!("decoded {:?}", t.elapsed());
    }
}
