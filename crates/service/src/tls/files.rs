//! A process's certificate in its files: read again when they have changed, so that a renewed one
//! serves the next connection without a restart.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};

use super::{
    certificate::{Certificate, CertificateError, Lapse, certificates},
    provider,
    stream::{KNOWN, OPEN},
};
use crate::state::atomic_write;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file cannot be read or written.
    #[error("{} cannot be used", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file's content is none.
    #[error("{} cannot be used", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: CertificateError,
    },
    /// A certificate is not valid now.
    #[error("{} cannot be used", path.display())]
    Lapsed {
        /// The file.
        path: PathBuf,
        /// Since when, or until when it was.
        #[source]
        source: Lapse,
    },
    /// A key does not fit its certificate, or is none.
    #[error("the key in {} cannot be used: {problem}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// An authority's certificate in one file, and in another one a certificate that it signed with its
/// key: one file, so that both are replaced at once. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Files {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    authority: PathBuf,
    own: PathBuf,
    held: Mutex<(Stamp, Arc<Held>)>,
}

/// What is in the files, as it is used.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) certificate: Certificate,
    pub(super) authority: CertificateDer<'static>,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    /// For those who show a certificate.
    pub(super) known: Arc<ServerConfig>,
    /// For anybody.
    pub(super) open: Arc<ServerConfig>,
}

/// What changes with a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    seconds: i64,
    nanos: i64,
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self { inode: found.ino(), seconds: found.mtime(), nanos: found.mtime_nsec() })
    }
}

impl Files {
    /// Reads both.
    ///
    /// # Errors
    /// If one cannot be used; names it.
    pub fn open(authority: &Path, own: &Path) -> Result<Self, FilesError> {
        let stamp =
            Stamp::of(own).map_err(|source| FilesError::Io { path: own.to_owned(), source })?;
        let held = Arc::new(Held::read(authority, own)?);
        let shared = Shared {
            authority: authority.to_owned(),
            own: own.to_owned(),
            held: Mutex::new((stamp, held)),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// What the certificate says now.
    #[must_use]
    pub fn certificate(&self) -> Certificate {
        self.held().certificate.clone()
    }

    /// The file with the authority's certificate.
    #[must_use]
    pub fn authority(&self) -> &Path {
        &self.shared.authority
    }

    /// Put another certificate with its key, both PEM, in place of the present one.
    ///
    /// # Errors
    /// If they do not fit, or cannot be written: the present one stays.
    pub fn replace(&self, certificate: &str, key: &str) -> Result<(), FilesError> {
        let Shared { authority, own, held } = &*self.shared;
        let text = format!("{certificate}{key}");
        let fresh = Held::of(authority, own, &text)?;
        let io = |source| FilesError::Io { path: own.clone(), source };
        atomic_write(own, text.as_bytes(), 0o600).map_err(io)?;
        let stamp = Stamp::of(own).map_err(io)?;
        *held.lock().unwrap_or_else(PoisonError::into_inner) = (stamp, Arc::new(fresh));
        Ok(())
    }

    /// What is in the files now. What cannot be used is told, and what was read before goes on.
    pub(super) fn held(&self) -> Arc<Held> {
        let Shared { authority, own, held } = &*self.shared;
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(stamp) = Stamp::of(own) else { return Arc::clone(&held.1) };
        if stamp != held.0 {
            held.0 = stamp;
            match Held::read(authority, own) {
                Ok(fresh) => held.1 = Arc::new(fresh),
                Err(error) => {
                    tracing::warn!(%error, "the certificate was changed into something unusable");
                }
            }
        }
        Arc::clone(&held.1)
    }
}

impl Held {
    fn read(authority: &Path, own: &Path) -> Result<Self, FilesError> {
        Self::of(authority, own, &read(own)?)
    }

    fn of(authority: &Path, own: &Path, text: &str) -> Result<Self, FilesError> {
        let content = |path: &Path| {
            let path = path.to_owned();
            move |source| FilesError::Content { path, source }
        };
        let unfit = |problem: String| FilesError::Key { path: own.to_owned(), problem };
        let root = certificates(&read(authority)?).map_err(content(authority))?.remove(0);
        let mut chain = certificates(text).map_err(content(own))?;
        let certificate = chain.first().map(Certificate::of).transpose().map_err(content(own))?;
        let certificate =
            certificate.ok_or_else(|| unfit("there is no certificate beside it".to_owned()))?;
        // With the authority's: who knows only its fingerprint finds it there.
        chain.push(root.clone());
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|error| unfit(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).map_err(|error| unfit(error.to_string()))?;
        let known = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| unfit(error.to_string()))?;
        let server = |whom, protocol: &[u8]| {
            let builder = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&TLS13])?
                .with_client_cert_verifier(whom);
            let mut config = builder.with_single_cert(chain.clone(), key.clone_key())?;
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            config.alpn_protocols = vec![protocol.to_vec()];
            Ok(Arc::new(config))
        };
        let unusable = |error: rustls::Error| unfit(error.to_string());
        let open = server(WebPkiClientVerifier::no_client_auth(), OPEN).map_err(unusable)?;
        let known = server(known, KNOWN).map_err(unusable)?;
        Ok(Self { certificate, authority: root, chain, key, known, open })
    }
}

pub(super) fn read(path: &Path) -> Result<String, FilesError> {
    fs::read_to_string(path).map_err(|source| FilesError::Io { path: path.to_owned(), source })
}
