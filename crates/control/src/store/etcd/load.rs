//! Reads all records as they were at one moment after office was taken: functions by pages, each
//! parsed while the next one is on its way.

use std::{sync::Arc, sync::mpsc, thread, time::Duration};

use dirigent_core::{FunctionRecord, Records};
use tokio::{runtime::Handle, time::Instant};

use super::{
    EtcdError, Place,
    keys::{beginning, following, read, read_all, signed, unsigned},
    office::{Leader, Term},
    rpc::{KeyValue, RangeRequest, RangeResponse, TxnRequest},
};
use crate::store::{StoreError, reading::Reader};

/// Functions of a page.
const PAGE: i64 = 4000;
/// For one page.
const PAGE_WITHIN: Duration = Duration::from_secs(5);

/// Everything that is recorded, to whoever leads in `term`, or to anybody.
pub(super) fn load(
    place: &Arc<Place>,
    term: Option<&Term>,
    runtime: &Handle,
) -> Result<Records, StoreError> {
    let first = runtime.block_on(begin(place, term))?;
    let Beginning { revision, leader, workers, data_planes, tokens, functions } = first;
    let mut parsed = Vec::with_capacity(usize::try_from(functions.count).unwrap_or_default());
    // One page waits while another is parsed.
    let (pages, next) = mpsc::sync_channel(1);
    thread::scope(|scope| {
        let fetching =
            scope.spawn(move || runtime.block_on(fetch(place, revision, functions, &pages)));
        let mut reader = Reader::default();
        while let Ok(page) = next.recv() {
            read_page(place, &page, &mut reader, &mut parsed)?;
        }
        let fetched = fetching.join().map_err(|_panic| place.broken("reading panicked"))?;
        fetched.map_err(|error| place.unavailable(&error))
    })?;
    Ok(Records {
        functions: parsed,
        workers: workers.iter().map(|kv| place.parse(kv)).collect::<Result<_, _>>()?,
        data_planes: data_planes.iter().map(|kv| place.parse(kv)).collect::<Result<_, _>>()?,
        tokens: tokens.first().map(|kv| place.parse(kv)).transpose()?.unwrap_or_default(),
        terms: leader.map(|leader| leader.terms).unwrap_or_default(),
    })
}

struct Beginning {
    revision: u64,
    leader: Option<Leader>,
    workers: Vec<KeyValue>,
    data_planes: Vec<KeyValue>,
    tokens: Vec<KeyValue>,
    functions: RangeResponse,
}

/// All but most functions, and the moment: later pages are of the same.
async fn begin(place: &Place, term: Option<&Term>) -> Result<Beginning, StoreError> {
    let keys = &place.keys;
    let functions = RangeRequest { limit: PAGE, ..beginning(keys.functions()) };
    let request = TxnRequest {
        success: vec![
            read(keys.of("leader")),
            read_all(beginning(keys.of("workers/"))),
            read_all(beginning(keys.of("data-planes/"))),
            read(keys.of("tokens")),
            read_all(functions),
        ],
        ..TxnRequest::default()
    };
    let answered = place.client.repeatable(&request, Instant::now() + PAGE_WITHIN).await;
    let answered = answered.map_err(|error| place.unavailable(&error))?;
    let revision = answered.revision();
    let mut ranges = answered.ranges();
    let mut next = || ranges.next().unwrap_or_default();
    let (leader, workers, data_planes) = (next().kvs, next().kvs, next().kvs);
    let tokens = next().kvs;
    let seated = leader.first().map_or(0, |kv| unsigned(kv.mod_revision));
    if term.is_some_and(|term| seated != term.revision) {
        return Err(StoreError::Deposed);
    }
    let leader = leader.first().map(|kv| place.parse(kv)).transpose()?;
    Ok(Beginning { revision, leader, workers, data_planes, tokens, functions: next() })
}

/// Page after page, until there is none or nobody takes them.
async fn fetch(
    place: &Place,
    revision: u64,
    first: RangeResponse,
    pages: &mpsc::SyncSender<Vec<KeyValue>>,
) -> Result<(), EtcdError> {
    let all = place.keys.functions();
    let mut page = first;
    loop {
        let next = following(&page, &all);
        if pages.send(page.kvs).is_err() {
            return Ok(());
        }
        let Some(next) = next else { return Ok(()) };
        let request = RangeRequest { limit: PAGE, revision: signed(revision), ..next };
        page = place.client.range(&request, Instant::now() + PAGE_WITHIN).await?;
    }
}

fn read_page(
    place: &Place,
    page: &[KeyValue],
    reader: &mut Reader,
    functions: &mut Vec<Arc<FunctionRecord>>,
) -> Result<(), StoreError> {
    for kv in page {
        let record = reader.read(&kv.value).map_err(|error| place.unreadable(kv, &error))?;
        functions.push(Arc::new(record));
    }
    Ok(())
}
