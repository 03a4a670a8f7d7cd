//! From the core to the wire and back, a file for each `.proto` file.
//!
//! A type is mirrored by one list of its fields, each with the [`codec`] that turns it into its
//! field on the wire and back. Names are the same on both sides.

mod codec;

mod bulk;
mod data_plane;
mod hello;
mod types;
mod worker;

use codec::Codec;

use crate::Malformed;

/// A struct as a message with the same fields.
macro_rules! message {
    ($name:ident { $($field:ident: $codec:ty,)* }) => {
        impl From<$name> for v1::$name {
            fn from(it: $name) -> Self {
                let $name { $($field),* } = it;
                Self { $($field: <$codec as Codec<_, _>>::put($field),)* }
            }
        }

        impl TryFrom<v1::$name> for $name {
            type Error = Malformed;

            fn try_from(it: v1::$name) -> Result<Self, Malformed> {
                let v1::$name { $($field),* } = it;
                Ok(Self { $($field: field::<$codec, _, _>(stringify!($field), $field)?,)* })
            }
        }
    };
}

/// A pair as a message of two fields.
macro_rules! pair {
    (
        ($first:ty, $second:ty) as $name:ident {
            $one:ident: $codec:ty, $two:ident: $codec_two:ty,
        }
    ) => {
        impl From<($first, $second)> for v1::$name {
            fn from(($one, $two): ($first, $second)) -> Self {
                Self {
                    $one: <$codec as Codec<_, _>>::put($one),
                    $two: <$codec_two as Codec<_, _>>::put($two),
                }
            }
        }

        impl TryFrom<v1::$name> for ($first, $second) {
            type Error = Malformed;

            fn try_from(it: v1::$name) -> Result<Self, Malformed> {
                let v1::$name { $one, $two } = it;
                Ok((
                    field::<$codec, _, _>(stringify!($one), $one)?,
                    field::<$codec_two, _, _>(stringify!($two), $two)?,
                ))
            }
        }
    };
}

/// An enum without contents as an enumeration with the same variants, from 1. One that is meant `by
/// default` is not sent, as by peers that know nothing of the enum.
macro_rules! choice {
    ($name:ident { $($variant:ident),* }) => {
        choice!(@ $name { $($variant),* } Unspecified => Err(Malformed::new(Why::Missing)), {});
    };
    ($name:ident { $usual:ident by default, $($variant:ident),* }) => {
        choice!(@ $name { $($variant),* } Unspecified => Ok($name::$usual), {
            $name::$usual => Self::Unspecified,
        });
    };
    (@ $name:ident { $($variant:ident),* } Unspecified => $absent:expr, { $($usual:tt)* }) => {
        impl From<$name> for v1::$name {
            fn from(it: $name) -> Self {
                match it {
                    $($usual)*
                    $($name::$variant => Self::$variant,)*
                }
            }
        }

        impl TryFrom<v1::$name> for $name {
            type Error = Malformed;

            fn try_from(it: v1::$name) -> Result<Self, Malformed> {
                match it {
                    v1::$name::Unspecified => $absent,
                    $(v1::$name::$variant => Ok(Self::$variant),)*
                }
            }
        }

        impl Enumeration for $name {
            type Wire = v1::$name;
        }
    };
}

/// An enum as the `kind` of a message: variants that hold nothing `()`, one value or fields.
macro_rules! kinds {
    ($name:ident in $module:ident { $($variant:ident $shape:tt)* }) => {
        impl From<$name> for v1::$module::Kind {
            fn from(it: $name) -> Self {
                match it {
                    $(kinds!(@core $name $variant it $shape) => {
                        Self::$variant(kinds!(@put $module $variant it $shape))
                    })*
                }
            }
        }

        impl TryFrom<v1::$module::Kind> for $name {
            type Error = Malformed;

            fn try_from(kind: v1::$module::Kind) -> Result<Self, Malformed> {
                match kind {
                    $(v1::$module::Kind::$variant(kinds!(@wire $module $variant it $shape)) => {
                        Ok(kinds!(@take $variant it $shape))
                    })*
                }
            }
        }
    };

    (@core $name:ident $variant:ident $it:ident ()) => { $name::$variant };
    (@put $module:ident $variant:ident $it:ident ()) => { v1::Nothing {} };
    (@wire $module:ident $variant:ident $it:ident ()) => { v1::Nothing {} };
    (@take $variant:ident $it:ident ()) => { Self::$variant };

    (@core $name:ident $variant:ident $it:ident ($codec:ty)) => { $name::$variant($it) };
    (@put $module:ident $variant:ident $it:ident ($codec:ty)) => {
        <$codec as Codec<_, _>>::put($it)
    };
    (@wire $module:ident $variant:ident $it:ident ($codec:ty)) => { $it };
    (@take $variant:ident $it:ident ($codec:ty)) => {
        Self::$variant(field::<$codec, _, _>(stringify!($variant), $it)?)
    };

    (@core $name:ident $variant:ident $it:ident { $($field:ident: $codec:ty,)* }) => {
        $name::$variant { $($field),* }
    };
    (@put $module:ident $variant:ident $it:ident { $($field:ident: $codec:ty,)* }) => {
        v1::$module::$variant { $($field: <$codec as Codec<_, _>>::put($field),)* }
    };
    (@wire $module:ident $variant:ident $it:ident { $($field:ident: $codec:ty,)* }) => {
        v1::$module::$variant { $($field),* }
    };
    (@take $variant:ident $it:ident { $($field:ident: $codec:ty,)* }) => {
        Self::$variant {
            $($field: field::<$codec, _, _>(
                concat!(stringify!($variant), ".", stringify!($field)),
                $field,
            )?,)*
        }
    };
}

/// An enum within a frame: without a kind that is known here the frame is malformed.
macro_rules! variants {
    ($name:ident in $module:ident { $($body:tt)* }) => {
        kinds! { $name in $module { $($body)* } }

        impl From<$name> for v1::$name {
            fn from(it: $name) -> Self {
                Self { kind: Some(it.into()) }
            }
        }

        impl TryFrom<v1::$name> for $name {
            type Error = Malformed;

            fn try_from(it: v1::$name) -> Result<Self, Malformed> {
                it.kind.ok_or_else(|| Malformed::new(Why::Missing))?.try_into()
            }
        }
    };
}

/// A frame: a kind that is not known here is a newer peer's. Kinds that came after version 1 are
/// named, so that an older peer can say what it did not understand.
macro_rules! frame {
    ($name:ident in $module:ident { $($body:tt)* } $(later { $($later:ident)* })?) => {
        kinds! { $name in $module { $($body)* } }

        impl From<$name> for v1::$name {
            fn from(it: $name) -> Self {
                let later: &[(bool, &str)] = &[
                    $($((matches!(it, $name::$later { .. }), stringify!($later)),)*)?
                ];
                let name = later.iter().find(|(is_it, _)| *is_it).map(|(_, name)| *name);
                Self { name: name.unwrap_or_default().to_owned(), kind: Some(it.into()) }
            }
        }

        impl TryFrom<v1::$name> for $name {
            type Error = FrameError;

            fn try_from(it: v1::$name) -> Result<Self, FrameError> {
                let Some(kind) = it.kind else {
                    return Err(FrameError::unknown(stringify!($name), &it.name));
                };
                kind.try_into()
                    .map_err(|malformed: Malformed| malformed.within(stringify!($name)).into())
            }
        }
    };
}

use {choice, frame, kinds, message, pair, variants};

/// A field as received; if it is malformed, by its name.
fn field<K: Codec<C, W>, C, W>(name: &str, wire: W) -> Result<C, Malformed> {
    K::take(wire).map_err(|malformed| malformed.within(name))
}
