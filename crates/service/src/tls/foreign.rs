//! Servers of another system, whose authority is not ours.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{PrivateKeyDer, ServerName, pem::PemObject as _},
    version::TLS13,
};
use tokio::{io::AsyncBufReadExt as _, net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::{
    certificate::{Certificate, CertificateError, certificates},
    files::{FilesError, read},
    provider,
    stream::{Complaint, ConnectError, HANDSHAKE, Stream},
};
use crate::{Clock, socket::Watched};

/// Until a server says something by itself; after that it is used as it is.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// Who they are: those whom an authority in a file vouches for, by the name of their host. And who
/// we are to them, if they ask: a certificate in another file. Both are read at each connection, so
/// that they are renewed without a restart. Cheap enough to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    authority: PathBuf,
    own: Option<(PathBuf, PathBuf)>,
}

impl Foreign {
    /// By the authority's certificate, and by our own with its key, each in a file in PEM.
    ///
    /// # Errors
    /// If one cannot be used now; names it.
    pub fn open(authority: &Path, own: Option<(&Path, &Path)>) -> Result<Self, FilesError> {
        let own = own.map(|(certificate, key)| (certificate.to_owned(), key.to_owned()));
        let this = Self { authority: authority.to_owned(), own };
        this.config()?;
        Ok(this)
    }

    /// The file with their authority's certificate.
    #[must_use]
    pub fn authority(&self) -> &Path {
        &self.authority
    }

    /// The file with the certificate that is shown to them.
    #[must_use]
    pub fn certificate(&self) -> Option<&Path> {
        self.own.as_ref().map(|(certificate, _)| certificate.as_path())
    }

    /// Over a connection that stands, to the server at `host`, to speak this protocol, in which the
    /// server speaks first. What it has against our certificate it says in place of that: one that is
    /// silent for a second may say it later ([`Stream::complaint`]).
    ///
    /// # Errors
    /// If it is not who is meant, or does not show it in time, or does not want us, or a file cannot
    /// be used any more. Cancellation drops the connection.
    pub async fn connect(
        &self,
        stream: TcpStream,
        host: &str,
        protocol: &[u8],
    ) -> Result<Stream, ConnectError> {
        let mut config = self.config()?;
        config.alpn_protocols = vec![protocol.to_vec()];
        // An IPv6 address in an address has brackets, in a certificate it has none.
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|error| ConnectError::Other(format!("`{host}`: {error}")))?;
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, Watched::not(stream));
        let mut stream = timeout(HANDSHAKE, handshake)
            .await
            .map_err(|_elapsed| ConnectError::Silent)?
            .map_err(ConnectError::of)?;
        // Before anything is said to it: what it says at the end of a connection on which something
        // lies unread may get lost.
        if let Ok(Err(error)) = timeout(FIRST_WORD, stream.fill_buf()).await {
            let complaint = Complaint::default();
            complaint.note(&error);
            return Err(match complaint.get() {
                Some(why) => ConnectError::Refused(why.to_owned()),
                None => ConnectError::Io(error),
            });
        }
        Ok(Stream::encrypted(stream.into()))
    }

    fn config(&self) -> Result<ClientConfig, FilesError> {
        let Self { authority, own } = self;
        let content = |path: &Path| {
            let path = path.to_owned();
            move |source| FilesError::Content { path, source }
        };
        let mut roots = RootCertStore::empty();
        for root in certificates(&read(authority)?).map_err(content(authority))? {
            let malformed = |error: rustls::Error| CertificateError::Malformed(error.to_string());
            roots.add(root).map_err(malformed).map_err(content(authority))?;
        }
        let unfit = |path: &Path, problem: &dyn std::fmt::Display| {
            let (path, problem) = (path.to_owned(), problem.to_string());
            FilesError::Key { path, problem }
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| unfit(authority, &error))?
            .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(&read(certificate)?).map_err(content(certificate))?;
                let leaf = chain.first().map(Certificate::of).transpose();
                let leaf = leaf.map_err(content(certificate))?;
                let lapse = leaf.map(|leaf| leaf.valid_at(Clock::wall())).transpose();
                lapse.map_err(|source| FilesError::Lapsed { path: certificate.clone(), source })?;
                let secret = PrivateKeyDer::from_pem_slice(read(key)?.as_bytes());
                let secret = secret.map_err(|error| unfit(key, &error))?;
                let fitted = builder.with_client_auth_cert(chain, secret);
                fitted.map_err(|error| unfit(key, &error))?
            }
        };
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}
