//! How a field becomes its field on the wire, and back.

use std::{collections::BTreeMap, marker::PhantomData, sync::Arc, time::Duration};

use dirigent_core::{
    Bytes, ClusterId, DataPlaneId, Digest, Epoch, FunctionName, KeepAlive, MilliCpu, Serial,
    WorkerId,
};

use crate::{Malformed, Why, limit};

/// A field of type `C` in the core and `W` on the wire.
pub(super) trait Codec<C, W> {
    fn put(core: C) -> W;
    fn take(wire: W) -> Result<C, Malformed>;
}

/// The same on both sides.
pub(super) enum Plain {}

impl<T> Codec<T, T> for Plain {
    fn put(core: T) -> T {
        core
    }

    fn take(wire: T) -> Result<T, Malformed> {
        Ok(wire)
    }
}

/// A newtype by its number.
pub(super) enum Number {}

macro_rules! numbers {
    ($($name:ident($number:ty),)*) => {$(
        impl Codec<$name, $number> for Number {
            fn put(core: $name) -> $number {
                core.0
            }

            fn take(wire: $number) -> Result<$name, Malformed> {
                Ok($name(wire))
            }
        }
    )*};
}

numbers! { Bytes(u64), DataPlaneId(u64), Epoch(u64), MilliCpu(u32), Serial(u64), WorkerId(u64), }

/// A number of 16 bits; the wire has none so short.
pub(super) enum Short {}

impl Codec<u16, u32> for Short {
    fn put(core: u16) -> u32 {
        core.into()
    }

    fn take(wire: u32) -> Result<u16, Malformed> {
        wire.try_into().map_err(|_too_large| Malformed::new(Why::TooLarge(u16::MAX.into())))
    }
}

/// A keep-alive in nanoseconds. No duration is as long as what stands for a learned one.
pub(super) enum Kept {}

impl Codec<KeepAlive, u64> for Kept {
    fn put(core: KeepAlive) -> u64 {
        match core {
            KeepAlive::For(time) => <Nanos as Codec<Duration, u64>>::put(time).min(u64::MAX - 1),
            KeepAlive::Auto => u64::MAX,
        }
    }

    fn take(wire: u64) -> Result<KeepAlive, Malformed> {
        Ok(match wire {
            u64::MAX => KeepAlive::Auto,
            nanos => KeepAlive::For(Duration::from_nanos(nanos)),
        })
    }
}

/// A duration in nanoseconds; 584 years at most.
pub(super) enum Nanos {}

impl Codec<Duration, u64> for Nanos {
    fn put(core: Duration) -> u64 {
        core.as_nanos().try_into().unwrap_or(u64::MAX)
    }

    fn take(wire: u64) -> Result<Duration, Malformed> {
        Ok(Duration::from_nanos(wire))
    }
}

/// Text or bytes, no longer than `MAX`.
pub(super) enum UpTo<const MAX: usize> {}

pub(super) type Word = UpTo<{ limit::WORD }>;
pub(super) type Text = UpTo<{ limit::TEXT }>;

impl<const MAX: usize> Codec<String, String> for UpTo<MAX> {
    fn put(core: String) -> String {
        core
    }

    fn take(wire: String) -> Result<String, Malformed> {
        within(wire.len(), MAX)?;
        Ok(wire)
    }
}

impl<const MAX: usize> Codec<Arc<str>, String> for UpTo<MAX> {
    fn put(core: Arc<str>) -> String {
        (*core).to_owned()
    }

    fn take(wire: String) -> Result<Arc<str>, Malformed> {
        within(wire.len(), MAX)?;
        Ok(wire.into())
    }
}

impl<const MAX: usize> Codec<Vec<u8>, Vec<u8>> for UpTo<MAX> {
    fn put(core: Vec<u8>) -> Vec<u8> {
        core
    }

    fn take(wire: Vec<u8>) -> Result<Vec<u8>, Malformed> {
        within(wire.len(), MAX)?;
        Ok(wire)
    }
}

/// Text that is rather cut than refused: what people read or ask for.
pub(super) enum Told<const MAX: usize = { limit::MESSAGE }> {}

impl<const MAX: usize> Codec<String, String> for Told<MAX> {
    fn put(mut core: String) -> String {
        core.truncate(core.floor_char_boundary(MAX));
        core
    }

    fn take(wire: String) -> Result<String, Malformed> {
        UpTo::<MAX>::take(wire)
    }
}

/// The environment of a program.
pub(super) enum Environment {}

impl Codec<BTreeMap<String, String>, BTreeMap<String, String>> for Environment {
    fn put(core: BTreeMap<String, String>) -> BTreeMap<String, String> {
        core
    }

    fn take(wire: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Malformed> {
        within(wire.len(), limit::ARGUMENTS)?;
        // Neither names nor values are told: the values are secrets.
        wire.iter()
            .try_for_each(|(name, value)| within(name.len().max(value.len()), limit::TEXT))?;
        Ok(wire)
    }
}

/// A function's name as users write it.
pub(super) enum Name {}

impl Codec<FunctionName, String> for Name {
    fn put(core: FunctionName) -> String {
        core.to_string()
    }

    fn take(wire: String) -> Result<FunctionName, Malformed> {
        within(wire.len(), limit::NAME)?;
        wire.parse().map_err(|_error| Malformed::new(Why::NoName))
    }
}

/// So many bytes and no others.
pub(super) enum Exactly {}

impl Codec<Digest, Vec<u8>> for Exactly {
    fn put(core: Digest) -> Vec<u8> {
        core.0.to_vec()
    }

    fn take(wire: Vec<u8>) -> Result<Digest, Malformed> {
        exactly(&wire).map(Digest)
    }
}

impl Codec<ClusterId, Vec<u8>> for Exactly {
    fn put(core: ClusterId) -> Vec<u8> {
        core.0.to_be_bytes().to_vec()
    }

    fn take(wire: Vec<u8>) -> Result<ClusterId, Malformed> {
        exactly(&wire).map(u128::from_be_bytes).map(ClusterId)
    }
}

/// An enum of the core that is an enumeration on the wire.
pub(super) trait Enumeration: Sized + TryFrom<Self::Wire, Error = Malformed> {
    type Wire: From<Self> + Into<i32> + TryFrom<i32> + Default + PartialEq;
}

/// An enum by its number; optional ones have the unspecified one for none.
pub(super) enum Choice {}

impl<C: Enumeration> Codec<C, i32> for Choice {
    fn put(core: C) -> i32 {
        C::Wire::from(core).into()
    }

    fn take(wire: i32) -> Result<C, Malformed> {
        known::<C>(wire)?.try_into()
    }
}

/// The same, where it may be left open.
pub(super) enum MaybeChoice {}

impl<C: Enumeration> Codec<Option<C>, i32> for MaybeChoice {
    fn put(core: Option<C>) -> i32 {
        core.map_or_else(C::Wire::default, C::Wire::from).into()
    }

    fn take(wire: i32) -> Result<Option<C>, Malformed> {
        let value = known::<C>(wire)?;
        if value == C::Wire::default() { Ok(None) } else { value.try_into().map(Some) }
    }
}

fn known<C: Enumeration>(wire: i32) -> Result<C::Wire, Malformed> {
    wire.try_into().map_err(|_unknown| Malformed::new(Why::NoSuchValue(wire)))
}

/// A type that has a message.
pub(super) enum Message {}

impl<C: TryFrom<W, Error = Malformed>, W: From<C>> Codec<C, W> for Message {
    fn put(core: C) -> W {
        core.into()
    }

    fn take(wire: W) -> Result<C, Malformed> {
        wire.try_into()
    }
}

/// A message that must be there, although the wire lets any be absent.
pub(super) struct Needed<K = Message>(PhantomData<K>);

impl<K: Codec<C, W>, C, W> Codec<C, Option<W>> for Needed<K> {
    fn put(core: C) -> Option<W> {
        Some(K::put(core))
    }

    fn take(wire: Option<W>) -> Result<C, Malformed> {
        K::take(wire.ok_or_else(|| Malformed::new(Why::Missing))?)
    }
}

/// What may be absent.
pub(super) struct Maybe<K = Message>(PhantomData<K>);

impl<K: Codec<C, W>, C, W> Codec<Option<C>, Option<W>> for Maybe<K> {
    fn put(core: Option<C>) -> Option<W> {
        core.map(K::put)
    }

    fn take(wire: Option<W>) -> Result<Option<C>, Malformed> {
        wire.map(K::take).transpose()
    }
}

/// At most `MAX` of them.
pub(super) struct List<const MAX: usize, K = Message>(PhantomData<K>);

impl<const MAX: usize, K: Codec<C, W>, C, W> Codec<Vec<C>, Vec<W>> for List<MAX, K> {
    fn put(core: Vec<C>) -> Vec<W> {
        core.into_iter().map(K::put).collect()
    }

    fn take(wire: Vec<W>) -> Result<Vec<C>, Malformed> {
        within(wire.len(), MAX)?;
        let each = |(index, one)| {
            K::take(one).map_err(|malformed: Malformed| malformed.within(&format!("[{index}]")))
        };
        wire.into_iter().enumerate().map(each).collect()
    }
}

/// What the core shares.
pub(super) struct Shared<K = Message>(PhantomData<K>);

impl<K: Codec<C, W>, C: Clone, W> Codec<Arc<C>, W> for Shared<K> {
    fn put(core: Arc<C>) -> W {
        K::put(Arc::unwrap_or_clone(core))
    }

    fn take(wire: W) -> Result<Arc<C>, Malformed> {
        K::take(wire).map(Arc::new)
    }
}

/// What both sides box.
pub(super) struct Boxed<K = Message>(PhantomData<K>);

impl<K: Codec<C, W>, C, W> Codec<Box<C>, Box<W>> for Boxed<K> {
    fn put(core: Box<C>) -> Box<W> {
        Box::new(K::put(*core))
    }

    fn take(wire: Box<W>) -> Result<Box<C>, Malformed> {
        K::take(*wire).map(Box::new)
    }
}

fn within(length: usize, max: usize) -> Result<(), Malformed> {
    if length > max { Err(Malformed::new(Why::TooLong(max))) } else { Ok(()) }
}

fn exactly<const N: usize>(wire: &[u8]) -> Result<[u8; N], Malformed> {
    wire.try_into().map_err(|_other| Malformed::new(Why::WrongLength(wire.len())))
}
