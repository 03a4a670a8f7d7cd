//! TLS between processes that trust one authority: an [`Authority`] signs what [`request`] asks for,
//! [`Files`] hold a certificate that may be renewed while it is used, and [`Stream`]s are made by
//! [`Files::accept`] and [`connect`]. Servers of other systems are called by [`Foreign`].
//!
//! A process is known by the URI in its certificate, not by its address. TLS 1.3 only. Sessions are
//! never resumed: a certificate that has run out meanwhile would not be looked at again.

mod authority;
mod certificate;
mod files;
mod foreign;
mod incoming;
mod stream;
mod verify;

pub use authority::{Authority, Issue};
pub use certificate::{
    Certificate, CertificateError, Fingerprint, FingerprintError, Lapse, request,
};
pub use files::{Files, FilesError};
pub use foreign::Foreign;
pub use incoming::incoming;
pub use stream::{Caller, Complaint, ConnectError, Stream, Trust, connect};

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

#[cfg(test)]
mod tests;
