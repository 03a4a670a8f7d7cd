//! `cargo xtask bench`: the standing set, some minutes of it. Figures are kept in `bench/results` with
//! machine and commit, and compared with the last that are committed: ratios to a floor or a rival
//! of the same run, and instructions per round of the hot loops. Neither knows how fast the machine
//! is; so a regression is seen also on another one.

mod instructions;
mod measures;
mod results;

use anyhow::{Result, bail};

use self::results::{Change, Results};

pub(crate) fn bench(only: Option<&str>) -> Result<()> {
    let last = results::last_committed()?;
    let mut results = Results::begin()?;
    measures::take(&mut results, only)?;
    instructions::take(&mut results, only)?;
    for skipped in &results.skipped {
        println!("xtask: bench: skip: {skipped}");
    }
    if only.is_some() {
        println!("xtask: bench: not the whole set: nothing is written");
    } else {
        println!("xtask: bench: written: {}", results.write()?.display());
    }
    let Some((path, last)) = last else {
        println!("xtask: bench: no result is committed yet: nothing to compare with");
        return results.print(&[]);
    };
    println!("xtask: bench: compared with {path}");
    if last.machine != results.machine {
        println!("xtask: bench: that was another machine: {}", last.machine_text());
    }
    let changes = results.against(&last);
    results.print(&changes)?;
    let worse: Vec<String> =
        changes.iter().filter(|change| change.is_regression()).map(Change::text).collect();
    if !worse.is_empty() {
        bail!("{} of {} figures are worse: {}", worse.len(), changes.len(), worse.join("; "));
    }
    Ok(())
}
