//! Whether the one who was called is the one who was meant.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use super::{
    certificate::{Certificate, Fingerprint},
    provider,
};

/// Whose word counts.
#[derive(Clone, Debug)]
pub(super) enum Roots {
    /// These authorities'.
    Known(Vec<CertificateDer<'static>>),
    /// That of the one with this fingerprint, whose certificate comes with the chain.
    Pinned(Fingerprint),
}

/// An authority that is named by a URI itself signs for those whose URI begins with it: there
/// `below` says which are meant, whatever host they run on. Of any other authority the host counts.
pub(super) struct Verifier {
    roots: Roots,
    below: &'static str,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("below", &self.below).finish_non_exhaustive()
    }
}

impl Verifier {
    pub(super) fn new(roots: Roots, below: &'static str) -> Arc<Self> {
        let algorithms = provider().signature_verification_algorithms;
        Arc::new(Self { roots, below, algorithms })
    }

    fn by(
        &self,
        root: &CertificateDer<'_>,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let mut store = RootCertStore::empty();
        store.add(root.clone())?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &store, between, now, algorithms)?;
        let uri = |der: &CertificateDer<'_>| Certificate::of(der).ok().and_then(|read| read.uri);
        let Some(authority) = uri(root) else { return verify_server_name(&parsed, name) };
        let meant = format!("{authority}{}", self.below);
        if uri(leaf).is_some_and(|uri| uri.starts_with(&meant)) {
            return Ok(());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots: Vec<&CertificateDer<'_>> = match &self.roots {
            Roots::Known(roots) => roots.iter().collect(),
            Roots::Pinned(pin) => {
                between.iter().filter(|der| Fingerprint::of(der) == *pin).collect()
            }
        };
        let mut refused = Error::from(CertificateError::UnknownIssuer);
        for root in roots {
            match self.by(root, leaf, between, name, now) {
                Ok(()) => return Ok(ServerCertVerified::assertion()),
                // That it is another one's says less than why the right one's is no good.
                Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {}
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
