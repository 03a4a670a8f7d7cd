//! `dirigent bench bulk`: large bodies both ways and idle connections, beside HAProxy.

use clap::Args;
use dirigent_bench::bulk;
use dirigent_core::Bytes;

use super::{Bar, System, haproxy, judge};
use crate::{
    fail::{Kind, OrFail as _, Result},
    printer::Printer,
};

#[derive(Debug, Args)]
pub(crate) struct BulkArgs {
    /// Size of a body
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    size: Bytes,
    /// Bodies each way through each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    blocks: u32,
    /// Connections that are kept, each after a call
    #[arg(long, default_value_t = 10_000, value_name = "COUNT")]
    idle: u32,
}

/// Of HAProxy's rate, Dirigent's is so much at least.
const RATE_RATIO: f64 = 0.8;
/// Bodies are passed on, not kept: some buffers of both directions.
const GROWN_MIB: f64 = 16.0;
/// With [`IDLE`] connections, in all.
const IDLE_MIB: f64 = 120.0;
const IDLE: u32 = 10_000;

pub(super) async fn bench(system: &System, args: &BulkArgs, printer: Printer) -> Result {
    let haproxy = haproxy()?;
    let options = bulk::Options {
        command: ["dirigent", "example", "bulk"].map(str::to_owned).to_vec(),
        haproxy,
        bytes: args.size.0,
        blocks: args.blocks as usize,
        idle: args.idle as usize,
        scratch: system.scratch().to_owned(),
    };
    let bulk = bulk::run(system, system.pid(), &options)
        .await
        .or_fail(Kind::User, || "the measurement failed")?;
    let ways = [("down", &bulk.down), ("up", &bulk.up)];
    if printer.is_json() {
        printer.json(&bulk)?;
    } else {
        let rows = ways.iter().flat_map(|(name, way)| {
            let blocks = way.dirigent.iter().zip(&way.haproxy).zip(&way.direct);
            blocks.map(|((ours, theirs), direct)| {
                let mut row = vec![(*name).to_owned()];
                row.extend([ours, theirs, direct].map(|rate| format!("{rate:.0}")));
                row
            })
        });
        printer.table(&["MiB/s", "dirigent", "haproxy", "sandbox"], rows.collect())?;
        printer.line(&format_args!(
            "{} idle connections: {:.1} MiB, HAProxy {:.1} MiB",
            bulk.idle, bulk.idle_mib, bulk.haproxy_idle_mib
        ))?;
    }
    let mut bars: Vec<Bar> = ways
        .iter()
        .map(|(name, way)| Bar {
            text: format!("{name} {:.2} of HAProxy's rate, at least {RATE_RATIO}", way.ratio()),
            holds: way.ratio() >= RATE_RATIO,
        })
        .collect();
    bars.push(Bar {
        text: format!("memory grew by {:.1} MiB, at most {GROWN_MIB}", bulk.grown_mib),
        holds: bulk.grown_mib <= GROWN_MIB,
    });
    // It is stated for so many.
    if args.idle >= IDLE {
        bars.push(Bar {
            text: format!(
                "{} idle connections: {:.1} MiB in all, under {IDLE_MIB}",
                args.idle, bulk.idle_mib
            ),
            holds: bulk.idle_mib < IDLE_MIB,
        });
    }
    judge(printer, &bars)
}
