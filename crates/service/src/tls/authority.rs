//! Who signs certificates.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    certificate::{Certificate, CertificateError},
    provider,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
    date_time_ymd,
};

/// A certificate is valid from a little before it was made, unless it is short-lived: hosts' clocks
/// differ by that much without anybody's fault.
const BACKDATED: Duration = Duration::from_secs(120);
/// An authority outlives what it signs; whoever wants a new one makes a new cluster of trust.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The key and certificate of an authority. Its key is never printed.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
    pem: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authority").field(&self.certificate).finish()
    }
}

/// What a certificate is to say.
#[derive(Clone, Copy, Debug)]
pub struct Issue<'a> {
    /// Whom it names.
    pub uri: &'a str,
    /// Whether it may be shown by who is connected to, not only by who connects.
    pub serves: bool,
    /// Hosts and IP addresses at which it is met by those who look for that and not for the URI.
    pub hosts: &'a [String],
    /// How long it is valid.
    pub life: Duration,
    /// The time of day.
    pub now: SystemTime,
}

impl Authority {
    /// A new one that is named by a URI: its certificate and its key, both PEM.
    ///
    /// # Errors
    /// If there is no randomness.
    pub fn make(uri: &str, now: SystemTime) -> Result<(String, String), CertificateError> {
        let key = KeyPair::generate()?;
        let mut params = params(uri, now, AUTHORITY_LIFE)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// The one with this certificate and key.
    ///
    /// # Errors
    /// If they are none.
    pub fn load(pem: String, key: &str) -> Result<Self, CertificateError> {
        let certificate = Certificate::of_pem(&pem)?;
        let issuer = Issuer::from_ca_cert_pem(&pem, KeyPair::from_pem(key)?)?;
        Ok(Self { issuer, certificate, pem })
    }

    /// Whom it names.
    #[must_use]
    pub fn uri(&self) -> &str {
        self.certificate.uri.as_deref().unwrap_or_default()
    }

    /// Its certificate as PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificate that a request asks for: of what the request says only its key counts. Both
    /// are PEM.
    ///
    /// # Errors
    /// If it is no request, or not made by who has the key.
    pub fn sign(&self, request: &str, issue: Issue<'_>) -> Result<String, CertificateError> {
        let mut asked = CertificateSigningRequestParams::from_pem(request)
            .map_err(|error| CertificateError::Request(error.to_string()))?;
        let mut params = params(issue.uri, issue.now, issue.life)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if issue.serves {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        for host in issue.hosts {
            params.subject_alt_names.push(match host.parse() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_no_address) => SanType::DnsName(host.as_str().try_into()?),
            });
        }
        asked.params = params;
        Ok(asked.signed_by(&self.issuer)?.pem())
    }
}

fn params(
    uri: &str,
    now: SystemTime,
    life: Duration,
) -> Result<CertificateParams, CertificateError> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    // For people; a common name has 64 characters at most, and a URI is of ASCII.
    subject.push(DnType::CommonName, uri.get(..64).unwrap_or(uri));
    params.distinguished_name = subject;
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATED.min(life / 10));
    params.not_after = epoch + now + life;
    let mut serial = [0; 16];
    let random = provider().secure_random.fill(&mut serial);
    random.map_err(|_no_randomness| rcgen::Error::RingUnspecified)?;
    // A serial number is positive.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}
