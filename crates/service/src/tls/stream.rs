//! Connections, encrypted or not, and how they are made.

use std::{
    fs, io,
    path::Path,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use rustls::{
    AlertDescription, CertificateError as TlsCertificateError, ClientConfig, Error,
    client::Resumption, pki_types::ServerName, version::TLS13,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{
    certificate::{Certificate, CertificateError, Fingerprint, certificates},
    files::Files,
    provider,
    verify::{Roots, Verifier},
};
use crate::socket::Watched;

/// Until both sides have shown who they are.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(5);

/// What is spoken with those who show a certificate, and with anybody.
pub(super) const KNOWN: &[u8] = b"h2";
pub(super) const OPEN: &[u8] = b"http/1.1";

/// Who may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Those who show a certificate of our authority.
    Known,
    /// Anybody.
    Anybody,
}

/// A connection.
#[derive(Debug)]
pub struct Stream {
    carrier: Carrier,
    peer: Option<Certificate>,
    complaint: Complaint,
}

#[derive(Debug)]
enum Carrier {
    Plain(Watched),
    Encrypted(Box<TlsStream<Watched>>),
}

/// What the other side says against this one's certificate. It says so only after the handshake, so
/// that what comes of it is a connection that breaks; this outlives it.
#[derive(Clone, Debug, Default)]
pub struct Complaint(Arc<OnceLock<String>>);

impl Complaint {
    /// What it says, if it did.
    #[must_use]
    pub fn get(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    pub(super) fn note(&self, error: &io::Error) {
        let said = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        let Some(Error::AlertReceived(alert)) = said else { return };
        let why = match alert {
            AlertDescription::CertificateExpired => {
                "this certificate has expired or is not valid yet by the other host's clock"
            }
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                "this certificate is not by the authority that the other side knows"
            }
            AlertDescription::CertificateRequired => "a certificate is needed",
            // What some say whatever is wrong with it, also where there is none.
            AlertDescription::BadCertificate => "it does not take this certificate, or wants one",
            AlertDescription::UnsupportedCertificate => "this certificate is not meant for that",
            _ => return,
        };
        self.0.get_or_init(|| why.to_owned());
    }
}

/// Whom to trust at the other end.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Those of the same authority as ours, to whom our certificate is shown.
    Files(Files),
    /// Authorities in a file.
    Authorities(Vec<rustls::pki_types::CertificateDer<'static>>),
    /// The authority with this fingerprint.
    Pinned(Fingerprint),
}

impl Trust {
    /// The authorities in a file in PEM.
    ///
    /// # Errors
    /// If it cannot be read or has none.
    pub fn file(path: &Path) -> Result<Self, super::FilesError> {
        let path = || path.to_owned();
        let text = fs::read_to_string(path())
            .map_err(|source| super::FilesError::Io { path: path(), source })?;
        Self::pem(&text).map_err(|source| super::FilesError::Content { path: path(), source })
    }

    /// The authorities in a PEM text.
    ///
    /// # Errors
    /// If it has none.
    pub fn pem(text: &str) -> Result<Self, CertificateError> {
        certificates(text).map(Self::Authorities)
    }
}

/// Why the other side is not trusted, or cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Its certificate is not valid at this time.
    #[error(
        "its certificate is not valid at this host's time ({0}): compare the clocks of both hosts, else renew it there"
    )]
    Clock(String),
    /// It has another authority.
    #[error("it is not of the cluster that is meant: its certificate is by another authority")]
    Stranger,
    /// It is somebody else.
    #[error("its certificate names somebody else than who is meant: {0}")]
    Other(String),
    /// It does not speak TLS.
    #[error("it does not speak TLS as expected ({0})")]
    Protocol(String),
    /// It says nothing.
    #[error("it was silent for {HANDSHAKE:?}")]
    Silent,
    /// Our own certificate is no good.
    #[error("this host's certificate cannot be used")]
    Own(#[source] CertificateError),
    /// It does not want our certificate, or wants one.
    #[error("it does not let this host in: {0}")]
    Refused(String),
    /// Files to be known by cannot be used.
    #[error("this host's files cannot be used")]
    Files(#[from] super::FilesError),
    /// The connection broke.
    #[error("the connection broke while both sides showed who they are: {0}")]
    Io(#[source] io::Error),
}

impl ConnectError {
    pub(super) fn of(error: io::Error) -> Self {
        let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
            return Self::Io(error);
        };
        use TlsCertificateError as Bad;
        match tls {
            Error::InvalidCertificate(
                bad @ (Bad::Expired
                | Bad::ExpiredContext { .. }
                | Bad::NotValidYet
                | Bad::NotValidYetContext { .. }),
            ) => Self::Clock(bad.to_string()),
            Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => Self::Stranger,
            Error::InvalidCertificate(bad) => Self::Other(bad.to_string()),
            other => Self::Protocol(other.to_string()),
        }
    }
}

/// Over a connection that stands, to whom `trust` trusts: `below` says who is meant of an authority
/// that has a URI, `host` of any other one.
///
/// # Errors
/// If it is not who is meant, or does not show it in time. Cancellation drops the connection.
pub async fn connect(
    stream: TcpStream,
    host: &str,
    trust: &Trust,
    below: &'static str,
) -> Result<Stream, ConnectError> {
    let unusable = |error: Error| ConnectError::Protocol(error.to_string());
    let (roots, own) = match trust {
        Trust::Files(files) => {
            let held = files.held();
            (Roots::Known(vec![held.authority.clone()]), Some(held))
        }
        Trust::Authorities(all) => (Roots::Known(all.clone()), None),
        Trust::Pinned(fingerprint) => (Roots::Pinned(*fingerprint), None),
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Verifier::new(roots, below));
    let mut config = match &own {
        Some(held) => builder
            .with_client_auth_cert(held.chain.clone(), held.key.clone_key())
            .map_err(unusable)?,
        None => builder.with_no_client_auth(),
    };
    let stream = match &own {
        Some(_) => Watched::new(stream).map_err(ConnectError::Io)?,
        None => Watched::not(stream),
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![if own.is_some() { KNOWN } else { OPEN }.to_vec()];
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| ConnectError::Other(format!("`{host}`: {error}")))?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let stream = timeout(HANDSHAKE, handshake)
        .await
        .map_err(|_elapsed| ConnectError::Silent)?
        .map_err(ConnectError::of)?;
    Ok(Stream::encrypted(stream.into()))
}

impl Files {
    /// Over a connection that was taken.
    ///
    /// # Errors
    /// If no connection comes of it. Cancellation drops it.
    pub async fn accept(&self, stream: TcpStream, caller: Caller) -> io::Result<Stream> {
        let held = self.held();
        let (config, stream) = match caller {
            Caller::Known => (Arc::clone(&held.known), Watched::new(stream)?),
            Caller::Anybody => (Arc::clone(&held.open), Watched::not(stream)),
        };
        let stream = timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await??;
        Ok(Stream::encrypted(stream.into()))
    }
}

impl Stream {
    /// One that is not encrypted.
    #[must_use]
    pub fn plain(stream: TcpStream) -> Self {
        Self {
            carrier: Carrier::Plain(Watched::not(stream)),
            peer: None,
            complaint: Complaint::default(),
        }
    }

    pub(super) fn encrypted(stream: TlsStream<Watched>) -> Self {
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let peer = shown.and_then(|der| Certificate::of(der).ok());
        let carrier = Carrier::Encrypted(Box::new(stream));
        Self { carrier, peer, complaint: Complaint::default() }
    }

    /// The certificate that the other side showed.
    #[must_use]
    pub fn peer(&self) -> Option<&Certificate> {
        self.peer.as_ref()
    }

    /// Where it is noted what the other side says against ours.
    #[must_use]
    pub fn complaint(&self) -> Complaint {
        self.complaint.clone()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = match &mut this.carrier {
            Carrier::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Carrier::Encrypted(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if let Poll::Ready(Err(error)) = &polled {
            this.complaint.note(error);
        }
        polled
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().carrier {
            Carrier::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Carrier::Encrypted(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().carrier {
            Carrier::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Carrier::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().carrier {
            Carrier::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Carrier::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().carrier {
            Carrier::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Carrier::Encrypted(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.carrier {
            Carrier::Plain(stream) => stream.is_write_vectored(),
            Carrier::Encrypted(stream) => stream.is_write_vectored(),
        }
    }
}
