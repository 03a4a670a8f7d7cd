//! etcd's messages and the client of its KV service, generated from `proto/etcd.proto`.

#![expect(
    unnameable_types,
    unreachable_pub,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    clippy::enum_variant_names,
    reason = "written by the compiler of the .proto files"
)]

tonic::include_proto!("etcdserverpb");
