//! `hello.proto`: how a stream begins.

use dirigent_core::frame::{Hello, Incarnation, Welcome};

use super::{
    codec::{Codec, Exactly, List, Maybe, Needed, Number, Plain, Short, Word},
    field, message, pair,
};
use crate::{Malformed, limit, v1};

message! {
    Incarnation { boot: Word, start: Plain, life: Plain, }
}

pair! {
    (u16, u16) as ProtocolRange { oldest: Short, newest: Short, }
}

message! {
    Hello {
        cluster: Maybe<Exactly>,
        protocol: Needed,
        features: List<{ limit::FEATURES }, Word>,
        incarnation: Needed,
        highest_epoch: Number,
    }
}

message! {
    Welcome { cluster: Exactly, epoch: Number, }
}
