//! What a control machine was told and what it ordered, entry by entry: the form in which a live one
//! is recorded, so that its course can be followed again elsewhere.
//!
//! A recording begins with everything that the machine was made of. The machine is deterministic:
//! whoever makes one of the same and tells it the same sees the same orders.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    Digest, FunctionRecord, Office, Records, Spec, Time, Write,
    control::{Answer, Call, Config, Control, Effect, Event},
    frame::ToWorker,
};

/// Raised when recordings of before cannot be followed any more.
pub const FORMAT: u32 = 3;

/// The name of a recording's file, numbered from 1, in its directory.
#[must_use]
pub fn segment(number: u32) -> String {
    format!("segment-{number:06}.jsonl")
}

/// One step, in the order in which they happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Entry {
    /// The first one.
    Began(Box<Began>),
    /// The machine was told something.
    Told {
        /// When.
        at: Time,
        /// What.
        event: Box<Event>,
    },
    /// The machine was told that a deadline may have passed.
    Expired {
        /// When.
        at: Time,
    },
    /// An order was taken from the machine.
    Did(Box<Effect>),
    /// The last one, unless the process died.
    Ended {
        /// Why.
        why: String,
    },
}

/// What a machine was made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Began {
    /// See [`FORMAT`].
    pub format: u32,
    /// The program's version.
    pub program: String,
    /// The time of day: milliseconds since 1970.
    pub wall_ms: u64,
    /// The machine's time.
    pub at: Time,
    /// The right to lead.
    pub office: Office,
    /// Of the machine's random source.
    pub seed: u64,
    /// See [`Config::own_token`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_token: Option<Digest>,
    /// What the store had.
    pub records: Records,
}

impl Began {
    /// A machine as it was at the beginning.
    #[must_use]
    pub fn machine(self) -> Control {
        let Self { at, office, seed, own_token, records, .. } = self;
        Control::new(at, Config { office, seed, own_token }, records)
    }
}

impl Entry {
    /// With the values of functions' environments, which are secrets, replaced by what `hide` makes
    /// of them. The machine only compares them: what was equal has to stay equal.
    #[must_use]
    pub fn without_secrets(mut self, hide: &dyn Fn(&str) -> String) -> Self {
        match &mut self {
            Self::Began(began) => {
                for record in &mut began.records.functions {
                    in_record(record, hide);
                }
            }
            Self::Told { event, .. } => {
                if let Event::Asked { call: Call::Deploy { spec, .. }, .. } = &mut **event {
                    in_spec(spec, hide);
                }
            }
            Self::Did(effect) => match &mut **effect {
                Effect::Persist { write: Write::PutFunction(record), .. } => {
                    in_record(record, hide);
                }
                Effect::ToWorker { frame: ToWorker::StartSandbox(order), .. } => {
                    in_spec(&mut order.spec, hide);
                }
                Effect::Reply { result: Ok(Answer::Environment(env)), .. } => {
                    env.values_mut().for_each(|value| *value = hide(value));
                }
                // Descriptions, the only answers with specs, have no values.
                Effect::Persist { .. }
                | Effect::ToWorker { .. }
                | Effect::Reply { .. }
                | Effect::ToDataPlane { .. }
                | Effect::Close { .. }
                | Effect::Admit { .. }
                | Effect::DiscardArtifacts { .. }
                | Effect::Resign { .. }
                | Effect::Measure(_) => {}
            },
            Self::Expired { .. } | Self::Ended { .. } => {}
        }
        self
    }
}

fn in_record(record: &mut Arc<FunctionRecord>, hide: &dyn Fn(&str) -> String) {
    if record.revisions.iter().all(|revision| revision.spec.env.is_empty()) {
        return;
    }
    for revision in &mut Arc::make_mut(record).revisions {
        in_spec(&mut revision.spec, hide);
    }
}

fn in_spec(spec: &mut Arc<Spec>, hide: &dyn Fn(&str) -> String) {
    if spec.env.is_empty() {
        return;
    }
    let hidden = spec.env.iter().map(|(name, value)| (name.clone(), hide(value)));
    let env = hidden.collect::<BTreeMap<_, _>>();
    Arc::make_mut(spec).env = env;
}
