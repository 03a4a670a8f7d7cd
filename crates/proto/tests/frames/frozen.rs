//! The bytes of version 1, kept in `v1.txt` beside this file: what a peer of another build sends.
//!
//! `cargo xtask generate` adds the lines that are missing and changes none. Before version 1 is
//! released a line may be removed by hand, to be written anew.

use std::{collections::BTreeMap, env, fmt::Write as _, fs, path::Path};

use crate::{
    any::Source,
    subject::{Subject, Visitor, each},
};

#[test]
fn every_kind_has_the_bytes_of_version_1_as_reviewed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/frames/v1.txt");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let kept = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let mut frozen = Frozen { kept, written: String::new(), wrong: Vec::new() };
    each(&mut frozen);
    let Frozen { kept, written, mut wrong } = frozen;
    wrong.extend(kept.keys().map(|name| format!("{name} is gone, but older peers send it")));
    assert!(wrong.is_empty(), "{}:\n{}", path.display(), wrong.join("\n"));
    if env::var_os("UPDATE").is_some() {
        return fs::write(&path, written).unwrap();
    }
    assert!(written == text, "{}: `cargo xtask generate` adds what is new", path.display());
}

struct Frozen<'a> {
    /// Those not met yet.
    kept: BTreeMap<&'a str, &'a str>,
    written: String,
    wrong: Vec<String>,
}

impl Visitor for Frozen<'_> {
    fn visit<S: Subject>(&mut self) {
        for (index, variant) in S::NAMES.iter().enumerate() {
            let name = format!("{}.{variant}", S::NAME);
            let value = S::of_variant(index, &mut Source::example());
            let now = hex(&value.clone().bytes());
            let then = self.kept.remove(&*name).map_or_else(|| now.clone(), str::to_owned);
            if then != now {
                self.wrong.push(format!("{name} was {then}\n  and is now {now}"));
            }
            let read = unhex(&then).map_or_else(|| Err("not hex".to_owned()), |it| S::read(&it));
            if read.as_ref() != Ok(&value) {
                self.wrong.push(format!("{name} was {value:?}\n  and is now read as {read:?}"));
            }
            writeln!(self.written, "{name} {then}").unwrap();
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}
