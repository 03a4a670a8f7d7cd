//! Round trips, and a corpus of archives that must not be unpacked.

use std::{
    io::Write as _,
    os::unix::fs::{MetadataExt as _, symlink},
};

use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    store: ArtifactStore,
}

impl Fixture {
    fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    fn with_limits(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ArtifactStore::with_limits(&dir.path().join("artifacts"), limits).unwrap();
        Self { dir, store }
    }

    fn unpack(&self, bytes: &[u8]) -> Result<PathBuf, UnpackError> {
        let digest = digest(bytes);
        let archive = self.dir.path().join("archive");
        fs::write(&archive, bytes).unwrap();
        let result = self.store.unpack(digest, &archive);
        let left: Vec<_> = fs::read_dir(self.dir.path().join("artifacts")).unwrap().collect();
        assert_eq!(left.len(), usize::from(result.is_ok()), "a failure leaves nothing behind");
        result.map(|()| self.store.path(&digest).unwrap())
    }

    fn refusal(bytes: &[u8]) -> Refusal {
        match Self::new().unpack(bytes) {
            Err(UnpackError::Refused { why, .. }) => why,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }
}

fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// A tar made by hand: names as they stand, without the checks of the tar library.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn entry(mut self, kind: u8, name: &str, link: &str, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.set_mode(0o6777);
        header.set_size(data.len() as u64);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(b'0', name, "", data)
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, target, b"")
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

#[test]
fn a_packed_directory_comes_back_as_it_was() {
    let source = tempfile::tempdir().unwrap();
    let at = source.path();
    fs::create_dir_all(at.join("sub/empty")).unwrap();
    fs::write(at.join("sub/data"), b"data").unwrap();
    fs::write(at.join("run.sh"), b"#!/bin/sh\n").unwrap();
    fs::set_permissions(at.join("run.sh"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .unwrap();
    let long = format!("sub/{}", "n".repeat(200));
    fs::write(at.join(&long), b"long").unwrap();
    symlink("sub/data", at.join("link")).unwrap();
    symlink("nowhere", at.join("dangling")).unwrap();
    let packed = pack(at).unwrap();
    assert_eq!(packed.entries, 7);
    let fixture = Fixture::new();
    fixture.store.unpack(packed.digest, packed.archive.path()).unwrap();
    let out = fixture.store.path(&packed.digest).unwrap();
    assert_eq!(fs::read(out.join("link")).unwrap(), b"data");
    assert_eq!(fs::read(out.join(long)).unwrap(), b"long");
    assert!(out.join("sub/empty").is_dir());
    assert_eq!(fs::metadata(out.join("run.sh")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(out.join("sub/data")).unwrap().mode() & 0o7777, 0o644);
    assert_eq!(fixture.store.list().unwrap(), [packed.digest]);
}

#[test]
fn the_same_files_give_the_same_digest() {
    let digests: Vec<Digest> = [["a", "b"], ["b", "a"]]
        .into_iter()
        .map(|order| {
            let dir = tempfile::tempdir().unwrap();
            for name in order {
                fs::write(dir.path().join(name), name).unwrap();
            }
            pack(dir.path()).unwrap().digest
        })
        .collect();
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn packing_leaves_out_what_does_not_belong() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    fs::write(at.join("main.py"), "1").unwrap();
    let plain = pack(at).unwrap().digest;
    fs::create_dir_all(at.join(".git/objects")).unwrap();
    fs::create_dir_all(at.join("lib")).unwrap();
    fs::write(at.join("lib/x.pyc"), "x").unwrap();
    fs::write(at.join("dirigent.toml"), "name = 'x'").unwrap();
    fs::write(at.join(".dirigentignore"), "/lib/\n").unwrap();
    assert_eq!(pack(at).unwrap().digest, plain);
}

#[test]
fn packing_refuses_what_a_worker_would_refuse() {
    let dir = tempfile::tempdir().unwrap();
    symlink("/etc/passwd", dir.path().join("out")).unwrap();
    assert!(matches!(pack(dir.path()), Err(PackError::Refused { why: Refusal::LinkOutside, .. })));
    let dir = tempfile::tempdir().unwrap();
    fs::File::create(dir.path().join("zeros")).unwrap().set_len(100 << 20).unwrap();
    assert!(matches!(pack(dir.path()), Err(PackError::Bomb { ratio: 200 })));
    let dir = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    assert!(matches!(pack(dir.path()), Err(PackError::Refused { why: Refusal::Special, .. })));
}

#[test]
fn special_bits_are_dropped_and_everyone_can_read() {
    let fixture = Fixture::new();
    let out = fixture.unpack(&Tar::default().file("f", b"x").end()).unwrap();
    let found = fs::metadata(out.join("f")).unwrap();
    assert_eq!(found.mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(&out).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn zstd_and_hard_links_and_repeated_directories_are_understood() {
    let tar = Tar::default()
        .entry(b'5', "./", "", b"")
        .entry(b'5', "d/", "", b"")
        .entry(b'5', "d/", "", b"")
        .file("./d/f", b"x")
        .entry(b'1', "g", "d/f", b"")
        .link("d/up", "../g")
        .end();
    let fixture = Fixture::new();
    let out = fixture.unpack(&zstd::encode_all(&tar[..], 3).unwrap()).unwrap();
    assert_eq!(fs::read(out.join("d/up")).unwrap(), b"x");
}

#[test]
fn long_names_of_both_forms_are_understood() {
    let long = "x".repeat(120);
    let pax = format!("{} path={long}\n", long.len() + 10);
    let tar = Tar::default()
        .entry(b'x', "ext", "", pax.as_bytes())
        .file("short", b"pax")
        .entry(b'L', "././@LongLink", "", format!("{long}y\0").as_bytes())
        .file("short", b"gnu")
        .end();
    let fixture = Fixture::new();
    let out = fixture.unpack(&tar).unwrap();
    assert_eq!(fs::read(out.join(&long)).unwrap(), b"pax");
    assert_eq!(fs::read(out.join(format!("{long}y"))).unwrap(), b"gnu");
}

#[test]
fn paths_that_lead_out_are_refused() {
    for name in ["../f", "/etc/f", "a/../../f", "a/..", ".."] {
        assert_eq!(Fixture::refusal(&Tar::default().file(name, b"").end()), Refusal::Outside);
    }
    let pax = Tar::default().entry(b'x', "e", "", b"19 path=../../../f\n").file("f", b"").end();
    assert_eq!(Fixture::refusal(&pax), Refusal::Outside);
}

#[test]
fn links_that_lead_out_are_refused() {
    for target in ["/etc", "..", "a/../..", "/"] {
        let tar = Tar::default().link("l", target).end();
        assert_eq!(Fixture::refusal(&tar), Refusal::LinkOutside, "{target}");
    }
    // Inside by its text, outside when followed.
    let tar = Tar::default().link("s/t/u", "../..").link("l", "s/t/u/../..").end();
    assert_eq!(Fixture::refusal(&tar), Refusal::LinkOutside);
    let tar = Tar::default().link("a", "b").link("b", "a").end();
    assert_eq!(Fixture::refusal(&tar), Refusal::LinkOutside);
    for target in ["../f", "/etc/passwd", "missing"] {
        let tar = Tar::default().entry(b'1', "h", target, b"").end();
        let why = Fixture::refusal(&tar);
        assert!(matches!(why, Refusal::Outside | Refusal::BadHardLink), "{target}");
    }
}

#[test]
fn nothing_is_written_through_a_link() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let tar = Tar::default().link("d", target).file("d/f", b"x").end();
    assert_eq!(Fixture::refusal(&tar), Refusal::Twice);
    let tar = Tar::default().link("d", target).entry(b'5', "d", "", b"").file("d/f", b"").end();
    assert_eq!(Fixture::refusal(&tar), Refusal::Twice);
    // A hard link to a symbolic link does not stand for its target.
    let tar = Tar::default().link("d", "/etc/passwd").entry(b'1', "h", "d", b"").end();
    assert_eq!(Fixture::refusal(&tar), Refusal::BadHardLink);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn devices_pipes_and_strange_kinds_are_refused() {
    for kind in *b"346" {
        let tar = Tar::default().entry(kind, "dev", "", b"").end();
        assert_eq!(Fixture::refusal(&tar), Refusal::Special);
    }
    for kind in *b"SMV" {
        let tar = Tar::default().entry(kind, "odd", "", b"").end();
        assert_eq!(Fixture::refusal(&tar), Refusal::Unsupported);
    }
}

#[test]
fn bad_names_are_refused() {
    let long = format!("{}\0", "n".repeat(256));
    let tar = Tar::default().entry(b'L', "l", "", long.as_bytes()).file("f", b"").end();
    assert_eq!(Fixture::refusal(&tar), Refusal::TooLong);
    let deep = format!("{}f\0", "d/".repeat(600));
    let tar = Tar::default().entry(b'L', "l", "", deep.as_bytes()).file("f", b"").end();
    assert_eq!(Fixture::refusal(&tar), Refusal::TooLong);
    let tar = Tar::default().entry(b'L', "l", "", b"a\0b\0").file("f", b"").end();
    assert_eq!(Fixture::refusal(&tar), Refusal::BadName);
    let tar = Tar::default().file("f", b"1").file("./f", b"2").end();
    assert_eq!(Fixture::refusal(&tar), Refusal::Twice);
    let tar = Tar::default().file("f", b"1").file("f/g", b"2").end();
    assert_eq!(Fixture::refusal(&tar), Refusal::NotBelowDirectory);
}

#[test]
fn too_much_of_anything_is_refused() {
    let small = Limits { entries: 10, bytes: 100 << 10, ratio: 200 };
    let many = (0..11).fold(Tar::default(), |tar, n| tar.file(&format!("f{n}"), b"")).end();
    let result = Fixture::with_limits(small).unpack(&many);
    assert!(matches!(result, Err(UnpackError::TooMany { limit: 10 })), "{result:?}");
    // Directories that are only implied count as well.
    let deep = Tar::default().file("a/b/c/d/e/f/g/h/i/j/k", b"").end();
    let result = Fixture::with_limits(small).unpack(&deep);
    assert!(matches!(result, Err(UnpackError::TooMany { .. })), "{result:?}");
    let large = Tar::default().file("f", &vec![1; 101 << 10]).end();
    let result = Fixture::with_limits(small).unpack(&large);
    assert!(matches!(result, Err(UnpackError::TooLarge { .. })), "{result:?}");
    let header = vec![b'n'; 70 << 10];
    let tar = Tar::default().entry(b'L', "l", "", &header).file("f", b"").end();
    let result = Fixture::new().unpack(&tar);
    assert!(matches!(result, Err(UnpackError::Format(_))), "{result:?}");
}

#[test]
fn a_compression_bomb_is_refused_before_it_fills_the_disk() {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    let mut header = Header::new_gnu();
    header.set_path("zeros").unwrap();
    header.set_size(1 << 30);
    header.set_cksum();
    encoder.write_all(header.as_bytes()).unwrap();
    for _ in 0..100 {
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let result = Fixture::new().unpack(&encoder.finish().unwrap());
    assert!(matches!(result, Err(UnpackError::Bomb { .. })), "{result:?}");
}

#[test]
fn damage_is_told_apart_from_a_bad_archive() {
    let fixture = Fixture::new();
    let good = Tar::default().file("f", &[7; 2000]).end();
    let archive = fixture.dir.path().join("cut");
    fs::write(&archive, &good[..1500]).unwrap();
    let result = fixture.store.unpack(digest(&good), &archive);
    assert!(matches!(result, Err(UnpackError::Mismatch { .. })), "{result:?}");
    for bad in [&good[..1500], b"", b"hello", b"\x1f\x8b\x08\x00zip", b"\x28\xb5\x2f\xfdxxxx"] {
        let result = fixture.unpack(bad);
        if bad.is_empty() {
            assert!(result.is_ok(), "an empty archive is an empty directory");
            let away = fixture.store.discard(&digest(bad)).unwrap();
            fs::remove_dir_all(away.unwrap()).unwrap();
        } else {
            assert!(matches!(result, Err(UnpackError::Format(_))), "{result:?}");
        }
    }
}

#[test]
fn opening_removes_what_was_left_half_done() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let tar = Tar::default().file("f", b"x").end();
    let archive = tempfile::NamedTempFile::new().unwrap();
    fs::write(archive.path(), &tar).unwrap();
    store.unpack(digest(&tar), archive.path()).unwrap();
    store.unpack(digest(&tar), archive.path()).unwrap();
    fs::create_dir_all(dir.path().join(".unpack-1-1/sub")).unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    assert_eq!(store.list().unwrap(), [digest(&tar)]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let away = store.discard(&digest(&tar)).unwrap();
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(store.discard(&digest(&tar)).unwrap(), None);
    fs::remove_dir_all(away.unwrap()).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
