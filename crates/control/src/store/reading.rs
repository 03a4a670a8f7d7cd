//! Reads functions back from their JSON. Of 100,000 functions most have settings and specs that
//! are written alike: the same text is parsed once and its value shared, which makes a start
//! faster and smaller. Only the last few texts are remembered.

use std::sync::Arc;

use dirigent_core::{
    Epoch, FunctionId, FunctionName, FunctionRecord, RevisionRecord, RevisionState, Settings, Spec,
    StartFailure, Target,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

/// [`FunctionRecord`] with what may be shared still unread.
#[derive(Deserialize)]
struct Stored<'a> {
    id: FunctionId,
    name: FunctionName,
    #[serde(borrow)]
    settings: &'a RawValue,
    #[serde(borrow, default)]
    next: Option<&'a RawValue>,
    #[serde(borrow)]
    revisions: Vec<StoredRevision<'a>>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct StoredRevision<'a> {
    number: u32,
    #[serde(borrow)]
    spec: &'a RawValue,
    state: RevisionState,
    created_ms: u64,
    failure: Option<StartFailure>,
    #[serde(default)]
    born: Epoch,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Reader {
    settings: Known<Settings>,
    specs: Known<Spec>,
}

impl Reader {
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<FunctionRecord, serde_json::Error> {
        let Stored { id, name, settings, next, revisions, targets } =
            serde_json::from_slice(bytes)?;
        let revision = |stored: StoredRevision<'_>| {
            let StoredRevision { number, spec, state, created_ms, failure, born } = stored;
            let spec = self.specs.read(spec)?;
            Ok(RevisionRecord { number, spec, state, created_ms, failure, born })
        };
        let revisions: Result<Vec<_>, serde_json::Error> =
            revisions.into_iter().map(revision).collect();
        let mut revisions = revisions?;
        let mut targets = targets;
        revisions.shrink_to_fit();
        targets.shrink_to_fit();
        let settings = self.settings.read(settings)?;
        let next = next.map(|next| self.settings.read(next)).transpose()?;
        Ok(FunctionRecord { id, name, settings, next, revisions, targets })
    }
}

/// Texts remembered at most.
const REMEMBERED: usize = 8;

/// The last texts and what they say, most recently used last.
#[derive(Debug)]
struct Known<T> {
    values: Vec<(Box<str>, Arc<T>)>,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self { values: Vec::with_capacity(REMEMBERED) }
    }
}

impl<T: DeserializeOwned> Known<T> {
    fn read(&mut self, raw: &RawValue) -> Result<Arc<T>, serde_json::Error> {
        let text = raw.get();
        if let Some(at) = self.values.iter().rposition(|(known, _)| **known == *text) {
            let found = self.values.remove(at);
            let value = Arc::clone(&found.1);
            self.values.push(found);
            return Ok(value);
        }
        let value: Arc<T> = Arc::new(serde_json::from_str(text)?);
        if self.values.len() == REMEMBERED {
            self.values.remove(0);
        }
        self.values.push((text.into(), Arc::clone(&value)));
        Ok(value)
    }
}
