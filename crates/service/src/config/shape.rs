//! What keys a configuration type has, asked of its own `Deserialize`: for each path a deserializer
//! is run that walks down to it, notes what is asked for there, and stops.

use std::{cell::Cell, fmt};

use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, Visitor};

/// What a key's value is, as its type asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A number.
    Number,
    /// Text, or a value written as text.
    Text,
    /// A list.
    List,
    /// Names and values chosen by the user.
    Table,
}

/// A key that can be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its path, such as `api.listen`.
    pub path: String,
    /// What its value is.
    pub kind: Kind,
}

/// Every key of `T`, in the order of its declaration.
#[must_use]
pub fn keys<T: DeserializeOwned>() -> Vec<Key> {
    let mut keys = Vec::new();
    collect::<T>(&mut Vec::new(), &mut keys);
    keys
}

fn collect<T: DeserializeOwned>(path: &mut Vec<&'static str>, keys: &mut Vec<Key>) {
    let found = Cell::new(None);
    // It ends with an error in any case: the answer is in `found`.
    let ended = T::deserialize(Probe { path, found: &found });
    debug_assert!(ended.is_err(), "a probe makes no value");
    match found.get() {
        Some(Found::Struct(fields)) => {
            for field in fields {
                path.push(field);
                collect::<T>(path, keys);
                path.pop();
            }
        }
        Some(Found::Leaf(kind)) => keys.push(Key { path: path.join("."), kind }),
        None => {}
    }
}

#[derive(Clone, Copy)]
enum Found {
    Struct(&'static [&'static str]),
    Leaf(Kind),
}

#[derive(Clone, Copy)]
struct Probe<'a> {
    path: &'a [&'static str],
    found: &'a Cell<Option<Found>>,
}

impl Probe<'_> {
    fn leaf<T>(self, kind: Kind) -> Result<T, Done> {
        self.found.set(Some(Found::Leaf(kind)));
        Err(Done)
    }
}

macro_rules! leaves {
    ($($method:ident => $kind:ident,)*) => {
        $(fn $method<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Done> {
            self.leaf(Kind::$kind)
        })*
    };
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Done;

    leaves! {
        deserialize_any => Text, deserialize_ignored_any => Text, deserialize_bool => Bool,
        deserialize_i8 => Number, deserialize_i16 => Number, deserialize_i32 => Number,
        deserialize_i64 => Number, deserialize_u8 => Number, deserialize_u16 => Number,
        deserialize_u32 => Number, deserialize_u64 => Number, deserialize_f32 => Number,
        deserialize_f64 => Number, deserialize_char => Text, deserialize_str => Text,
        deserialize_string => Text, deserialize_bytes => Text, deserialize_byte_buf => Text,
        deserialize_unit => Text, deserialize_seq => List, deserialize_map => Table,
        deserialize_identifier => Text,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Done> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Done> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _visitor: V,
    ) -> Result<V::Value, Done> {
        self.leaf(Kind::Text)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _len: usize,
        _visitor: V,
    ) -> Result<V::Value, Done> {
        self.leaf(Kind::List)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        _visitor: V,
    ) -> Result<V::Value, Done> {
        self.leaf(Kind::List)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Done> {
        match self.path.split_first() {
            Some((first, rest)) => {
                visitor.visit_map(OneKey { key: first, value: Self { path: rest, ..self } })
            }
            None => {
                self.found.set(Some(Found::Struct(fields)));
                Err(Done)
            }
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Done> {
        self.leaf(Kind::Text)
    }
}

/// A map with one key, on the way to the path's end.
struct OneKey<'a> {
    key: &'static str,
    value: Probe<'a>,
}

impl<'de> MapAccess<'de> for OneKey<'_> {
    type Error = Done;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Done> {
        seed.deserialize(de::value::StrDeserializer::new(self.key)).map(Some)
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Done> {
        seed.deserialize(self.value)
    }
}

/// The end of a probe.
#[derive(Debug)]
struct Done;

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("probed")
    }
}

impl std::error::Error for Done {}

impl de::Error for Done {
    fn custom<T: fmt::Display>(_message: T) -> Self {
        Self
    }
}
