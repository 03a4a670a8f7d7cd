//! What a certificate says, and the request for one.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use humantime::format_rfc3339_seconds;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

/// What is wrong with a certificate, a key or a request for a certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It is none.
    #[error("it is not a certificate: {0}")]
    Malformed(String),
    /// The request for it is none, or not by who has the key.
    #[error("it is not a request for a certificate by who has its key: {0}")]
    Request(String),
    /// What is asked for cannot be put into one.
    #[error("no certificate can be made: {0}")]
    Make(#[from] rcgen::Error),
}

/// What is read of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whom it names: its first URI.
    pub uri: Option<String>,
    /// Whether it may be shown by who is connected to.
    pub serves: bool,
    /// Its number, which its authority gave no other one.
    pub serial: String,
    /// Valid from then on.
    pub not_before: SystemTime,
    /// And until then.
    pub not_after: SystemTime,
}

impl Certificate {
    pub(super) fn of(der: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let malformed = |error: &dyn fmt::Display| CertificateError::Malformed(error.to_string());
        let (_, parsed) = parse_x509_certificate(der).map_err(|error| malformed(&error))?;
        let names = parsed.subject_alternative_name().map_err(|error| malformed(&error))?;
        let uri = names.and_then(|names| {
            names.value.general_names.iter().find_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            })
        });
        let usage = parsed.extended_key_usage().map_err(|error| malformed(&error))?;
        let validity = parsed.validity();
        Ok(Self {
            uri,
            serves: usage.is_some_and(|usage| usage.value.server_auth),
            serial: parsed.raw_serial_as_string(),
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
        })
    }

    /// The first certificate of a PEM text.
    ///
    /// # Errors
    /// If there is none.
    pub fn of_pem(pem: &str) -> Result<Self, CertificateError> {
        Self::of(&certificates(pem)?.remove(0))
    }

    /// Whether it is valid at this time.
    ///
    /// # Errors
    /// If it is not yet, or not any more.
    pub fn valid_at(&self, now: SystemTime) -> Result<(), Lapse> {
        if now < self.not_before {
            return Err(Lapse::Early { from: self.not_before, now });
        }
        if now > self.not_after {
            return Err(Lapse::Late { until: self.not_after, now });
        }
        Ok(())
    }

    /// When it is to be renewed: with a third of its life left.
    #[must_use]
    pub fn renew_at(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_after - life / 3
    }
}

/// A certificate is not valid now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lapse {
    /// Not yet.
    #[error(
        "this certificate is valid only from {} on, and this host's clock says {}: set the clock, or the one of who made it",
        format_rfc3339_seconds(*from), format_rfc3339_seconds(*now)
    )]
    Early {
        /// Since when.
        from: SystemTime,
        /// The time.
        now: SystemTime,
    },
    /// Not any more.
    #[error(
        "this certificate ran out at {}, and this host's clock says {}: get another one, or set the clock",
        format_rfc3339_seconds(*until), format_rfc3339_seconds(*now)
    )]
    Late {
        /// Until when.
        until: SystemTime,
        /// The time.
        now: SystemTime,
    },
}

fn time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

/// All certificates of a PEM text, of which there is at least one.
pub(super) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| CertificateError::Malformed(error.to_string()))?;
    if all.is_empty() {
        return Err(CertificateError::Malformed("there is no `BEGIN CERTIFICATE`".to_owned()));
    }
    Ok(all)
}

/// The SHA-256 of a certificate: who knows it knows an authority again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub(super) fn of(der: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(der).into())
    }

    /// Of the first certificate of a PEM text.
    ///
    /// # Errors
    /// If there is none.
    pub fn of_pem(pem: &str) -> Result<Self, CertificateError> {
        Ok(Self::of(&certificates(pem)?.remove(0)))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 64 hexadecimal digits")]
pub struct FingerprintError;

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(FingerprintError);
        }
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            let digits = text.get(at..at + 2).ok_or(FingerprintError)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_checked| FingerprintError)?;
        }
        Ok(Self(bytes))
    }
}

/// A new key, and the request for a certificate of it, both PEM. Whom the certificate names is for the
/// authority to say, so that the request names nobody.
///
/// # Errors
/// If there is no randomness.
pub fn request() -> Result<(String, String), CertificateError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(&key)?;
    Ok((key.serialize_pem(), request.pem()?))
}
