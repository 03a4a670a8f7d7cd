//! `fuzz/`: what reads bytes of others, and the machines, under inputs that a fuzzer finds.
//!
//! libFuzzer is told by the compiler which ways the code went; that needs no other toolchain. Inputs that
//! go new ways are kept in `target/fuzz-found/TARGET`; `--keep` puts the smallest set that goes all ways
//! known so far into `fuzz/corpus/TARGET`, which `cargo test` tries each time.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::run;

/// Where inputs come from that crash it.
const CRASHES: &str = "target/fuzz-crashes";

/// Inputs of a target that are checked in: some of all kinds, not each of them.
const KEPT: usize = 100;

/// What the compiler adds, as cargo-fuzz has it do: counters, comparisons, and `cfg(fuzzing)`.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// Fuzzes for so long; a crash is an error that names the input.
pub(crate) fn fuzz(target: &str, seconds: u64, keep: bool) -> Result<()> {
    let corpus = format!("fuzz/corpus/{target}");
    if !Path::new(&corpus).is_dir() {
        let all = fs::read_dir("fuzz/corpus").context("fuzz/corpus")?;
        let mut all: Vec<String> =
            all.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        all.sort();
        bail!("there is no target {target}; there are {}", all.join(", "));
    }
    let (found, crashes) = (format!("target/fuzz-found/{target}"), format!("{CRASHES}/{target}/"));
    fs::create_dir_all(&found).with_context(|| found.clone())?;
    fs::create_dir_all(&crashes).with_context(|| crashes.clone())?;
    // Named, so that build scripts are built without the flags.
    let machine = run::machine(&run::rustc())?;
    let limit = format!("-max_total_time={seconds}");
    let crashes = format!("-artifact_prefix={crashes}");
    let mut build = vec!["build", "--quiet", "--release", "--manifest-path", "fuzz/Cargo.toml"];
    build.extend(["--target-dir", "target/fuzz", "--target", &machine, "--bin", target]);
    run::cargo_with("fuzz target", &build, &[("RUSTFLAGS", FLAGS)])?;
    let program = format!("target/fuzz/{machine}/release/{target}");
    let common = ["-timeout=10", "-rss_limit_mb=4096", "-max_len=4096", &crashes];
    let args = [&[&*limit], &common[..], &[&*found, &*corpus]].concat();
    run::program("fuzzing", &program, &args)?;
    if keep {
        keep_fewest(target, &program, &common, &[&*corpus, &*found])?;
    }
    Ok(())
}

/// Makes the corpus of some of the fewest inputs that go all ways which those in `known` go.
fn keep_fewest(target: &str, program: &str, common: &[&str], known: &[&str; 2]) -> Result<()> {
    let (fewest, corpus) = (format!("target/fuzz-fewest/{target}"), known[0]);
    drop(fs::remove_dir_all(&fewest));
    fs::create_dir_all(&fewest).with_context(|| fewest.clone())?;
    let smallest = ["-set_cover_merge=1", "-use_counters=0", "-use_cmp=0"];
    let args = [&smallest[..], common, &[&*fewest], known].concat();
    run::program("corpus", program, &args)?;
    for file in fs::read_dir(corpus).with_context(|| corpus.to_owned())? {
        let file = file?;
        // Those that crashed something stay: `crash-...`, `timeout-...`.
        if !file.file_name().to_string_lossy().contains('-') {
            fs::remove_file(file.path())?;
        }
    }
    let mut files = fs::read_dir(&fewest)?
        .map(|file| file.and_then(|file| Ok((file.metadata()?.len(), file.path()))))
        .collect::<Result<Vec<_>, _>>()?;
    files.sort();
    // Of all sizes.
    for (_, file) in files.iter().step_by(files.len().div_ceil(KEPT).max(1)) {
        let name = file.file_name().context("a file has a name")?;
        fs::copy(file, Path::new(corpus).join(name))?;
    }
    Ok(())
}
