//! Bytes of newer peers, broken ones and strangers: an error that says what is wrong, never a
//! panic.

use dirigent_core::{
    Duty, Epoch, SandboxId,
    frame::{FromWorker, Load, ToDataPlane},
};
use dirigent_proto::{FrameError, Malformed, Why, limit, unpack, v1};
use prost::Message as _;
use v1::from_worker::{Kind, SandboxGone};

use crate::{
    any::Source,
    corpus,
    subject::{Subject, Visitor, each, read_each},
};

#[test]
fn random_bytes_are_refused_or_frames_that_are_sent_the_same_way() {
    let mut source = Source::seeded(1);
    for _ in 0..20_000 {
        let length = source.below(40);
        let bytes: Vec<u8> =
            (0..length).map(|_| u8::try_from(source.below(256)).unwrap()).collect();
        read_each(&bytes);
    }
}

#[test]
fn what_a_fuzzer_found_is_refused_or_frames() {
    corpus::replay("frames", read_each);
}

#[test]
fn frames_that_are_cut_or_changed_are_refused_or_others() {
    struct Damage {
        source: Source,
        readable: usize,
        refused: usize,
    }

    impl Visitor for Damage {
        fn visit<S: Subject>(&mut self) {
            for seed in 0..20 {
                let bytes = S::any(&mut Source::seeded(seed)).bytes();
                for cut in 0..bytes.len() {
                    self.read::<S>(&bytes[..cut]);
                    let mut changed = bytes.clone();
                    changed[cut] = u8::try_from(self.source.below(256)).unwrap();
                    self.read::<S>(&changed);
                }
            }
        }
    }

    impl Damage {
        fn read<S: Subject>(&mut self, bytes: &[u8]) {
            if S::read(bytes).is_ok() { self.readable += 1 } else { self.refused += 1 }
        }
    }

    let mut damage = Damage { source: Source::seeded(2), readable: 0, refused: 0 };
    each(&mut damage);
    let Damage { readable, refused, .. } = damage;
    assert!(readable > 1000 && refused > 1000, "{readable} were readable, {refused} refused");
}

#[test]
fn a_kind_that_is_not_known_here_is_told_by_its_name_and_spoils_nothing() {
    // In a newer version's file: `message Teleport { uint64 to = 1; }`, `Teleport teleport = 15`.
    let newer = [
        b"\x0a\x0f\x7a\x02\x08\x07\x82\x01\x08Teleport".as_slice(),
        b"\x0a\x04\x7a\x02\x08\x07",
        b"\x0a\x02\x12\x00",
    ];
    let batch = v1::FromWorkers::decode(&*newer.concat()).unwrap();
    let unknown = |kind: &str| Err(FrameError::Unknown { kind: kind.to_owned() });
    let frames: Vec<_> = unpack(batch).collect();
    let beat = FromWorker::Beat(Load::default());
    assert_eq!(frames, [unknown("FromWorker.Teleport"), unknown("FromWorker.?"), Ok(beat)]);
}

#[test]
fn fields_that_are_not_known_here_are_left_out() {
    // A beat of a newer peer with a field 15.
    let beat = b"\x12\x04\x08\x03\x78\x09";
    let load = Load { sandboxes: 3, ..Load::default() };
    assert_eq!(FromWorker::read(beat), Ok(FromWorker::Beat(load)));
}

/// What is said of a worker's frame that was right before `change`.
fn said(index: usize, change: impl FnOnce(&mut Kind)) -> String {
    use crate::any::Variants as _;

    let frame = FromWorker::of_variant(index, &mut Source::example());
    let mut frame = v1::FromWorker::from(frame);
    change(frame.kind.as_mut().unwrap());
    FromWorker::try_from(frame).unwrap_err().to_string()
}

/// The same, of a `Hello`.
fn said_of_hello(change: impl FnOnce(&mut v1::WorkerHello)) -> String {
    said(0, |kind| match kind {
        Kind::Hello(hello) => change(hello),
        other => panic!("{other:?}"),
    })
}

#[test]
fn what_is_malformed_is_named_with_what_is_wrong() {
    let cases = [
        (said_of_hello(|it| it.hello = None), "hello` is missing, or of an unknown kind"),
        (
            said_of_hello(|it| it.hello.as_mut().unwrap().cluster = Some(vec![1; 15])),
            "hello.cluster` is 15 bytes long",
        ),
        (
            said_of_hello(|it| {
                it.hello.as_mut().unwrap().protocol.as_mut().unwrap().newest = 65_536;
            }),
            "hello.protocol.newest` is larger than 65535",
        ),
        (
            said_of_hello(|it| {
                it.hello.as_mut().unwrap().features = vec![String::new(); limit::FEATURES + 1];
            }),
            "hello.features` is longer than 256",
        ),
        (
            said_of_hello(|it| {
                it.hello.as_mut().unwrap().features[1] = "x".repeat(limit::WORD + 1);
            }),
            "hello.features[1]` is longer than 1024",
        ),
        (
            said_of_hello(|it| it.capacity.as_mut().unwrap().runtimes[1].runtime = 99),
            "capacity.runtimes[1].runtime` has the unknown value 99",
        ),
        (
            said_of_hello(|it| it.capacity.as_mut().unwrap().runtimes[0].isolation = 0),
            "capacity.runtimes[0].isolation` is missing, or of an unknown kind",
        ),
        (
            said_of_hello(|it| it.sandboxes[0].address.as_mut().unwrap().kind = None),
            "sandboxes[0].address` is missing, or of an unknown kind",
        ),
        (said_of_hello(|it| it.artifacts[1] = Vec::new()), "artifacts[1]` is 0 bytes long"),
    ];
    for (said, wanted) in cases {
        assert_eq!(said, format!("`FromWorker.Hello.{wanted}"));
    }
}

#[test]
fn a_kind_that_came_later_is_named_for_those_who_do_not_know_it() {
    let sent = v1::ToDataPlane::from(ToDataPlane::Duty { duty: Duty::Draining });
    let as_an_older_one_reads_it = v1::ToDataPlane { kind: None, ..sent };
    let error = ToDataPlane::try_from(as_an_older_one_reads_it);
    assert_eq!(error, Err(FrameError::Unknown { kind: "ToDataPlane.Duty".to_owned() }));
}

#[test]
fn a_malformed_frame_says_which_field_in_a_value_too() {
    let sandbox = Some(SandboxId::new(Epoch(1), 1).into());
    let kind = Some(Kind::SandboxGone(SandboxGone { sandbox, failure: None }));
    let error = FromWorker::try_from(v1::FromWorker { name: String::new(), kind });
    let field = "FromWorker.SandboxGone.failure".to_owned();
    assert_eq!(error, Err(Malformed { field, why: Why::Missing }.into()));
}
