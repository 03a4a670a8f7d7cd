//! What is tested: every enum that has a mirror, by its bytes.

use std::fmt::Debug;

use dirigent_core::{
    Access, Address, Auth, Cause, Duty, Fault, Isolation, Listen, Protocol, Pull, RuntimeKind,
    frame::{
        FromDataPlane, FromDataPlaneBulk, FromWorker, FromWorkerBulk, Share, Status, ToDataPlane,
        ToDataPlaneBulk, ToWorker, ToWorkerBulk, WhyReturned,
    },
};
use dirigent_proto::v1;
use prost::Message as _;

use super::any::Variants;

pub(crate) trait Subject: Variants + Clone + Debug + PartialEq {
    const NAME: &str;

    fn bytes(self) -> Vec<u8>;

    /// What the bytes say, or why they say nothing.
    fn read(bytes: &[u8]) -> Result<Self, String>;
}

macro_rules! messages {
    ($($name:ident)*) => {$(
        impl Subject for $name {
            const NAME: &str = stringify!($name);

            fn bytes(self) -> Vec<u8> {
                v1::$name::from(self).encode_to_vec()
            }

            fn read(bytes: &[u8]) -> Result<Self, String> {
                let message = v1::$name::decode(bytes).map_err(|error| error.to_string())?;
                message.try_into().map_err(|error| format!("{error}"))
            }
        }
    )*};
}

/// As the only field of a message: a plain number.
macro_rules! enumerations {
    ($($name:ident)*) => {$(
        impl Subject for $name {
            const NAME: &str = stringify!($name);

            fn bytes(self) -> Vec<u8> {
                i32::from(v1::$name::from(self)).encode_to_vec()
            }

            fn read(bytes: &[u8]) -> Result<Self, String> {
                let number = i32::decode(bytes).map_err(|error| error.to_string())?;
                let value = v1::$name::try_from(number).map_err(|error| error.to_string())?;
                value.try_into().map_err(|error| format!("{error}"))
            }
        }
    )*};
}

messages! {
    FromWorker ToWorker FromWorkerBulk ToWorkerBulk
    FromDataPlane ToDataPlane FromDataPlaneBulk ToDataPlaneBulk
    Share Address Cause Status
}

enumerations! { RuntimeKind Protocol Isolation Listen Fault WhyReturned Auth Access Duty Pull }

/// Done with each of them.
pub(crate) trait Visitor {
    fn visit<S: Subject>(&mut self);
}

pub(crate) fn each(visitor: &mut impl Visitor) {
    visitor.visit::<FromWorker>();
    visitor.visit::<ToWorker>();
    visitor.visit::<FromDataPlane>();
    visitor.visit::<ToDataPlane>();
    visitor.visit::<FromWorkerBulk>();
    visitor.visit::<ToWorkerBulk>();
    visitor.visit::<FromDataPlaneBulk>();
    visitor.visit::<ToDataPlaneBulk>();
    visitor.visit::<Share>();
    visitor.visit::<Address>();
    visitor.visit::<Cause>();
    visitor.visit::<Status>();
    visitor.visit::<RuntimeKind>();
    visitor.visit::<Protocol>();
    visitor.visit::<Isolation>();
    visitor.visit::<Listen>();
    visitor.visit::<Fault>();
    visitor.visit::<WhyReturned>();
    visitor.visit::<Auth>();
    visitor.visit::<Access>();
    visitor.visit::<Duty>();
}

/// What bytes are refused as, or frames that are written the same way.
pub(crate) fn read_each(bytes: &[u8]) {
    struct Reader<'a>(&'a [u8]);

    impl Visitor for Reader<'_> {
        fn visit<S: Subject>(&mut self) {
            if let Ok(read) = S::read(self.0) {
                assert_eq!(S::read(&read.clone().bytes()), Ok(read));
            }
        }
    }

    each(&mut Reader(bytes));
}
