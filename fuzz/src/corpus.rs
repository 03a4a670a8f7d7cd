//! Replays checked-in inputs of fuzz targets in tests.

use std::{fs, path::Path};

/// Inputs that a fuzzer found to go different ways, through the same check. For tests: so they are tried
/// also where nobody fuzzes.
pub(crate) fn replay(target: &str, check: impl Fn(&[u8])) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.parent().and_then(Path::parent).expect("a crate of the workspace");
    let corpus = root.join("fuzz/corpus").join(target);
    let mut tried = 0;
    for file in fs::read_dir(&corpus).expect("it is checked in") {
        let path = file.expect("can be read").path();
        println!("{}", path.display());
        check(&fs::read(&path).expect("can be read"));
        tried += 1;
    }
    assert!(tried > 10, "{} has {tried}", corpus.display());
}
