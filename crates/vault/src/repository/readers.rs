//! Whatever bytes stand in a repository, reading them neither panics nor makes room for what they only claim:
//! arbitrary bytes, and what is valid but for a few changes. `STILLPOINT_CASES` says how many of each are tried.
//!
//! Crash story: this is a test; it works in temporary directories.

use std::{fs, sync::Arc};

use model::{
    aligned::is_aligned,
    record::{BackupRecord, CutRecord},
};
use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    sample::Index as Which,
    test_runner::{Config, TestRunner},
};
use rustic_core::{
    FileType,
    repofile::{BlobType, Node, SnapshotFile},
};
use testkit::changes::{changed, changes, runner};
use zstd::bulk::Decompressor;

use super::{
    backend::Backend,
    blobs::{Blobs, Unread, check_promise, unpack},
    crypt::SecretKey,
    disk::RealDisk,
    snapshot, tree,
};
use crate::archiver::{Index, IndexContent, IndexRecords, Name, Spot, Standing, parse_header, read_header};

/// Lets a reader read arbitrary bytes, and each sample with up to three changes, and unchanged.
fn read(samples: &[Vec<u8>], reader: impl Fn(&[u8])) {
    samples.iter().for_each(|sample| reader(sample));
    let mutated = (any::<Which>(), changes(1..4))
        .prop_map(|(which, changes)| changed(&samples[which.index(samples.len())], &changes));
    let bytes = prop_oneof![1 => vec(any::<u8>(), 0..200), 3 => mutated];
    runner()
        .run(&bytes, |bytes| {
            reader(&bytes);
            Ok(())
        })
        .unwrap();
}

fn header(entries: &[(u8, u32, u32)]) -> Vec<u8> {
    let mut plain = Vec::new();
    for (kind, length, raw) in entries {
        plain.push(*kind);
        plain.extend_from_slice(&length.to_le_bytes());
        if *kind > 1 {
            plain.extend_from_slice(&raw.to_le_bytes());
        }
        plain.extend_from_slice(&Name::of(&length.to_le_bytes()).0);
    }
    plain
}

#[test]
fn headers_of_packs() {
    let samples =
        [header(&[(0, 132, 0), (1, 40, 0), (2, 77, 200), (3, 66, 300)]), header(&[(0, u32::MAX, 0); 2])];
    read(&samples, |bytes| {
        if let Some(blobs) = parse_header(bytes) {
            assert!(blobs.len() * 37 <= bytes.len(), "each entry has 37 bytes or more");
        }
    });
}

/// A repository's directory without anything in it.
struct Bare {
    _dir: tempfile::TempDir,
    backend: Arc<Backend>,
    key: SecretKey,
}

impl Bare {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let backend = Arc::new(Backend::new(dir.path(), Arc::new(RealDisk)));
        fs::create_dir_all(dir.path().join("data")).unwrap();
        Self { _dir: dir, backend, key: SecretKey::random() }
    }

    fn put(&self, bytes: &[u8]) -> Name {
        let name = Name::of(bytes);
        let path = self.backend.path(FileType::Pack, &name.id());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        name
    }
}

#[test]
fn packs_without_an_index() {
    let bare = Bare::new();
    let blob = bare.key.encrypt(b"content").unwrap();
    let sealed = bare.key.encrypt(&header(&[(0, blob.len() as u32, 0)])).unwrap();
    let pack = [blob, sealed.clone(), (sealed.len() as u32).to_le_bytes().to_vec()].concat();
    let samples = [pack.clone(), pack[..pack.len() - 4].to_vec(), [&pack[..], &[0xff; 4]].concat()];
    assert!(read_header(&bare.backend, &bare.key, &bare.put(&pack), pack.len() as u64).is_ok());
    read(&samples, |bytes| {
        let name = bare.put(bytes);
        let size = bytes.len() as u64;
        let _ = read_header(&bare.backend, &bare.key, &name, size);
        let _ = read_header(&bare.backend, &bare.key, &name, u64::from(u32::MAX) + size);
        fs::remove_file(bare.backend.path(FileType::Pack, &name.id())).unwrap();
    });
}

#[test]
fn index_files() {
    let name = "ab".repeat(32);
    let sample = format!(
        r#"{{"supersedes":[],"packs":[{{"id":"{name}","blobs":[{{"id":"{name}","type":"data","offset":0,"length":77,"uncompressed_length":200}},{{"id":"{name}","type":"tree","offset":77,"length":40,"uncompressed_length":null}}]}}],"packs_to_delete":[{{"id":"{name}","blobs":[],"time":"2026-11-20T03:15:00Z"}}]}}"#
    );
    let blob =
        |tpe: &str, rest: &str| format!(r#"{{"id":"{name}","type":"{tpe}","offset":0,"length":77{rest}}}"#);
    let blobs = [blob("data", ""), blob("tree", r#","uncompressed_length":200"#)].join(",");
    let usual =
        format!(r#"{{"packs":[{{"id":"{name}","blobs":[{blobs}]}},{{"id":"{name}","blobs":[{blobs}]}}]}}"#);
    assert!(IndexRecords::default().read_usual(usual.as_bytes()).is_some());
    assert!(serde_json::from_str::<IndexContent>(&sample).is_ok());
    read(&[sample.into_bytes(), usual.clone().into_bytes(), usual.into_bytes()], |bytes| {
        let mut records = IndexRecords::default();
        let content = match (records.read(bytes), serde_json::from_slice::<IndexContent>(bytes)) {
            (Ok(()), Ok(content)) => content,
            (Err(_), Err(_)) => return,
            (read, other) => panic!("{read:?} {other:?} {}", String::from_utf8_lossy(bytes)),
        };
        assert_eq!(records.packs().count(), content.packs.len() + content.packs_to_delete.len());
        for ((pack, blobs), expected) in records.packs().zip(&content.packs) {
            assert_eq!((pack, blobs), (expected.id, &*expected.blobs()));
        }
        let index = Index::default();
        index.add_records(Name::default(), &records, records.len());
        for (tpe, name, spot) in records.packs().flat_map(|(_, blobs)| blobs) {
            let _ = (index.spot(*tpe, name), index.measure(&[*name]), spot.content_length());
        }
    });
}

const FILE: &str = r#"{"nodes":[{"name":"a\\xffb","type":"file","mode":420,"mtime":"2026-11-20T03:15:00.123456789+01:00","atime":"2026-11-20T03:15:00Z","ctime":"1970-01-01T00:00:00Z","uid":1,"gid":2,"user":"u","group":"g","inode":7,"device_id":9,"size":3,"links":2,"extended_attributes":[{"name":"user.x","value":"AAH/"}],"content":["abababababababababababababababababababababababababababababababab"]},{"name":"d","type":"dir","subtree":"abababababababababababababababababababababababababababababababab"},{"name":"l","type":"symlink","linktarget":"x","linktarget_raw":"eA=="},{"name":"c","type":"chardev","device":259},{"name":"f","type":"fifo"},{"name":"s","type":"socket"}]}"#;

#[test]
fn stored_directories() {
    assert_eq!(tree::parse(FILE.as_bytes()).unwrap().len(), 6);
    read(&[FILE.into(), br#"{"nodes":null}"#.to_vec()], |bytes| {
        if let Ok(children) = tree::parse(bytes) {
            assert!(children.windows(2).all(|pair| pair[0].name <= pair[1].name));
            assert!(children.iter().map(|child| child.content.len() * 64).sum::<usize>() <= bytes.len());
        }
        // The other reader of them, which the archiver has for its parent.
        if let Ok(nodes) = crate::archiver::StoredNode::parse_tree(bytes) {
            nodes.iter().for_each(|node| drop((node.file_name(), node.stamp())));
        }
        if let Ok(tree) = serde_json::from_slice::<rustic_core::repofile::Tree>(bytes) {
            tree.nodes.iter().for_each(|node| drop(Node::name(node)));
        }
    });
}

#[test]
fn snapshots_and_their_records() {
    let record = r#"{\"version\":1,\"cut\":\"2026-11-20T03-15-00Z-000001\"}"#;
    let sample = format!(
        r#"{{"time":"2026-11-20T03:15:00Z","tree":"{0}","paths":["/srv"],"hostname":"h","username":"u","uid":0,"gid":0,"tags":["stillpoint","app=hydro"],"original":"{0}","parent":"{0}","description":"{record}"}}"#,
        "ab".repeat(32)
    );
    assert!(serde_json::from_str::<SnapshotFile>(&sample).is_ok());
    read(&[sample.into_bytes()], |bytes| {
        if let Ok(found) = serde_json::from_slice::<SnapshotFile>(bytes) {
            let _ = (snapshot::record(&found), snapshot::is_log(&found));
        }
        let _ = serde_json::from_slice::<BackupRecord>(bytes);
        let _ = serde_json::from_slice::<CutRecord>(bytes);
    });
}

#[test]
fn encrypted_files() {
    let key = SecretKey::random();
    let packed = [vec![2], zstd::bulk::compress(&[b'x'; 5000], 1).unwrap()].concat();
    let json = br#"{"a":1}"#.to_vec();
    let samples = [packed.clone(), json.clone(), vec![2], vec![]];
    read(&samples, |bytes| {
        let _ = (key.decrypt(bytes), key.decrypt_file(bytes), key.decrypt_in_place(&mut bytes.to_vec()));
        // The same as whoever has the key may write it.
        let sealed = key.encrypt(bytes).unwrap();
        if let Ok(plain) = key.decrypt_file(&sealed) {
            assert!(
                plain.len() <= (16 << 20).max(bytes.len() * 1024),
                "{} from {}",
                plain.len(),
                bytes.len()
            );
        }
        let _ = SecretKey::from_json(bytes);
    });
    let bomb = [vec![2], zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap()].concat();
    assert!(key.decrypt_file(&key.encrypt(&bomb).unwrap()).is_err(), "{} bytes become 64 MiB", bomb.len());
}

#[test]
fn compressed_blobs() {
    let sample = zstd::bulk::compress(&b"a blob that is a blob ".repeat(50), 1).unwrap();
    let streamed = zstd::stream::encode_all(&b"of no known size"[..], 1).unwrap();
    let samples = [sample, streamed, zstd::bulk::compress(&[], 1).unwrap()];
    let sizes = [0, 1, 16, 1100, 1 << 20, 1 << 30, u32::MAX];
    read(&samples, |bytes| {
        for raw in sizes {
            if check_promise(bytes, raw).is_err() {
                continue;
            }
            assert!(raw as usize <= (bytes.len() / 4 + 1) * (128 << 10), "{raw} from {}", bytes.len());
            let _ = unpack(bytes, &mut vec![0; raw as usize], &mut Decompressor::new().unwrap());
        }
    });
}

/// The tree of a directory with 600 GiB of pages has 1.3 GB, and packs to a half of that.
#[test]
fn a_blob_of_gigabytes_is_no_bomb_if_it_takes_space() {
    let raw = (5 << 28) | 5;
    // A header of zstd with that size (RFC 8878, 3.1.1.1), then what is not looked at.
    let packed = |length: usize| {
        let mut packed = vec![0; length];
        packed[..5].copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd, 0xa0]);
        packed[5..9].copy_from_slice(&u32::to_le_bytes(raw));
        packed
    };
    assert!(check_promise(&packed(100 << 20), raw).is_err());
    check_promise(&packed(200 << 20), raw).unwrap();
    assert!(check_promise(&packed(200 << 20), raw + 1).is_err());
}

#[test]
fn blobs_where_an_index_says_they_are() {
    let bare = Bare::new();
    let content = b"of a blob".repeat(9);
    let plain = bare.key.encrypt(&content).unwrap();
    let packed = bare.key.encrypt(&zstd::bulk::compress(&content, 1).unwrap()).unwrap();
    let pack = bare.put(&[&plain[..], &packed].concat());
    let (first, second) = (plain.len() as u32, packed.len() as u32);
    let number = || prop_oneof![Just(0), any::<u32>(), 0..2 * (first + second)];
    let spots = (number(), number(), number(), any::<bool>());
    let name = Name::of(&content);
    let read_at = |spot: Spot, tpe| {
        let index = Index::default();
        index.add_pack(pack, Standing::Indexed, &[(tpe, name, spot)]);
        let blobs = Blobs::new(Arc::new(index), Arc::clone(&bare.backend), bare.key.clone());
        if tpe == BlobType::Tree {
            return blobs.tree(&name).ok();
        }
        let place = blobs.locate(&name)?;
        let mut read = Vec::new();
        match blobs.each(&[place], &mut |bytes| {
            read.extend_from_slice(bytes);
            Ok(())
        }) {
            Ok(()) => Some(read),
            Err(Unread::Damaged(_)) => None,
            Err(Unread::Refused(_)) => panic!("nobody refuses"),
        }
    };
    let raw = content.len() as u32;
    let right = [Spot { offset: 0, length: first, raw: 0 }, Spot { offset: first, length: second, raw }];
    right.iter().for_each(|spot| assert_eq!(read_at(*spot, BlobType::Data), Some(content.clone())));
    runner()
        .run(&spots, |(offset, length, raw, is_tree)| {
            let spot = Spot { offset, length, raw };
            let tpe = if is_tree { BlobType::Tree } else { BlobType::Data };
            let read = read_at(spot, tpe);
            assert!(read.is_none() || right.contains(&spot), "{spot:?}");
            Ok(())
        })
        .unwrap();
}

/// Zeros, noise and blobs larger than a piece, in any order: adjoining in the pack, apart, and again and again.
#[test]
fn blobs_in_any_order_are_what_their_names_say() {
    let bare = Bare::new();
    let noise = |from: u32, length: u32| -> Vec<u8> {
        (from..from + length).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
    };
    let page = 64 << 10;
    let mut contents =
        vec![vec![0; page], vec![0; 4096], vec![1; page], noise(9, 5 << 18), noise(5, 70), vec![]];
    contents.extend((0..24).map(|number| noise(number * 1000, page as u32)));
    let (mut bytes, mut spots) = (Vec::new(), Vec::new());
    for (number, content) in contents.iter().enumerate() {
        let is_packed = number % 5 != 4 && !content.is_empty();
        let stored = if is_packed { zstd::bulk::compress(content, 1).unwrap() } else { content.clone() };
        let sealed = bare.key.encrypt(&stored).unwrap();
        let raw = if is_packed { content.len() as u32 } else { 0 };
        let spot = Spot { offset: bytes.len() as u32, length: sealed.len() as u32, raw };
        spots.push((BlobType::Data, Name::of(content), spot));
        bytes.extend_from_slice(&sealed);
    }
    let index = Index::default();
    index.add_pack(bare.put(&bytes), Standing::Indexed, &spots);
    let blobs = Blobs::new(Arc::new(index), Arc::clone(&bare.backend), bare.key.clone());
    // Mostly in order, with many zeros, as in a file.
    let one = prop_oneof![2 => Just(0), 1 => 1..contents.len(), 4 => Just(usize::MAX)];
    let config = Config { cases: 12, failure_persistence: None, ..Config::default() };
    let check = |order: Vec<usize>| {
        let follow = |last: &mut usize, which: usize| {
            *last = if which == usize::MAX { (*last + 1) % contents.len() } else { which };
            Some(*last)
        };
        let order: Vec<usize> = order.into_iter().scan(0, follow).collect();
        let places: Vec<_> = order.iter().map(|which| blobs.locate(&spots[*which].1).unwrap()).collect();
        let mut read = Vec::new();
        let done = blobs.each(&places, &mut |piece| {
            assert!(is_aligned(piece) && !piece.is_empty());
            read.extend_from_slice(piece);
            Ok(())
        });
        assert!(done.is_ok());
        assert!(
            read == order.iter().flat_map(|which| &contents[*which]).copied().collect::<Vec<_>>(),
            "{order:?}"
        );
        Ok(())
    };
    TestRunner::new(config).run(&vec(one, 0..60), check).unwrap();
}
