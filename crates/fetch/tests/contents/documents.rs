//! The documents between the signed list and the packs.

use super::*;
use varve_fetch::metadata::DocumentError;
use varve_format::release::StoredManifest;

fn record(case: &Case) -> Result<varve_fetch::Verified<ReleaseRecord>, DocumentError> {
    let metadata =
        case.world.trust().refresh(&case.world.sources(), day(0), &Cancel::new()).unwrap();
    metadata.record(&"a".parse().unwrap(), &case.world.sources(), &Cancel::new())
}

fn damage(case: &Case, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = case.world.read(path);
    change(&mut bytes);
    case.world.write(path, &bytes);
}

#[test]
fn each_is_checked_against_the_one_above() {
    let case = Case::new();
    let good = record(&case).unwrap();
    let sources = case.world.sources();
    let manifest = StoredManifest::path(&good.digest);
    let index = good.packs[0].index_path();
    let before = World::picture(&case.world.incoming);
    damage(&case, &manifest, |bytes| bytes[20] ^= 1);
    let error = varve_fetch::manifest(&good, &sources, &Cancel::new()).unwrap_err();
    assert!(error.to_string().contains("its digest is not the one"), "{error}");
    damage(&case, &manifest, |bytes| bytes.truncate(30));
    let error = varve_fetch::manifest(&good, &sources, &Cancel::new()).unwrap_err();
    assert!(error.to_string().contains("it has 30 bytes, the metadata says"), "{error}");
    std::fs::remove_file(case.world.file(&manifest)).unwrap();
    let error = varve_fetch::manifest(&good, &sources, &Cancel::new()).unwrap_err();
    assert!(error.to_string().ends_with("there is no such file"), "{error}");
    damage(&case, &index, |bytes| bytes[30] ^= 1);
    let error = pack_index(&good.packs[0], &sources, &Cancel::new()).unwrap_err();
    assert!(error.to_string().contains("its digest is not the one"), "{error}");
    let file = World::picture(&Dir::open(case.world.file("targets")).unwrap())[0].0.clone();
    damage(&case, &format!("targets/{file}"), |bytes| bytes[40] ^= 1);
    assert!(record(&case).unwrap_err().to_string().contains("its digest is not the one"));
    assert_eq!(World::picture(&case.world.incoming), before);
}

#[test]
fn a_manifest_that_is_a_bomb_stops_at_its_stated_size() {
    let case = Case::new();
    let bomb = zstd::bulk::compress(&vec![b'x'; 300 << 20], 3).unwrap();
    let mut record: ReleaseRecord = (*self::record(&case).unwrap()).clone();
    record.manifest.size = bomb.len() as u64;
    record.manifest.sha256 = varve_format::Sha256Digest::of(&bomb);
    record.name = "bomb".parse().unwrap();
    case.world.write(&StoredManifest::path(&record.digest), &bomb);
    case.world.write("pending/bomb.json", &record.to_bytes());
    case.world
        .repository
        .publish(&"bomb".parse().unwrap(), "stable", None, &case.world.keys, day(0), false)
        .unwrap();
    let metadata =
        case.world.trust().refresh(&case.world.sources(), day(0), &Cancel::new()).unwrap();
    let sources = case.world.sources();
    let record = metadata.record(&"bomb".parse().unwrap(), &sources, &Cancel::new()).unwrap();
    let error = varve_fetch::manifest(&record, &sources, &Cancel::new()).unwrap_err();
    assert!(error.to_string().contains("it decodes to more than"), "{error}");
}

#[test]
fn a_release_that_is_not_there_is_said() {
    let case = Case::new();
    let metadata =
        case.world.trust().refresh(&case.world.sources(), day(0), &Cancel::new()).unwrap();
    let error = metadata
        .record(&"zzz".parse().unwrap(), &case.world.sources(), &Cancel::new())
        .unwrap_err();
    assert_eq!(error.to_string(), "the repository has no release zzz");
}
