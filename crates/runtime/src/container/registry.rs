//! Images of registries: what a tag stands for, and the image of a digest, down into files.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use dirigent_core::{Bytes, Digest, Fault};
use oci_client::{
    Client, Reference,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::OciDistributionError,
    manifest::OciDescriptor,
    secrets::RegistryAuth,
};
use tokio::{io::AsyncWrite, time::Instant};

use super::image::{ImageError, Limits, layer::Packed};

/// How long a registry may take to accept a connection, and be silent afterwards.
const CONNECT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(60);

/// How often it is told how much of an image has come.
const TELL: Duration = Duration::from_secs(1);

/// Whom it is told, and of how many bytes all are.
pub(super) type Tell<'a> = &'a dyn Fn(Bytes, Bytes);

/// Of an image's configuration.
const MAX_CONFIG: u64 = 4 << 20;

/// How a registry is spoken to.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    /// As whom; nobody if nothing is said.
    pub user: Option<String>,
    /// The file with the password or token. It is read for each image, so that it can be changed.
    pub password_file: Option<PathBuf>,
    /// The file with the certificate of the authority that signed the registry's, in PEM.
    pub ca: Option<PathBuf>,
    /// Whether it is spoken to without TLS. Those on loopback are, unless they have a `ca`.
    pub plain_http: bool,
}

/// An image in files.
pub(super) struct Pulled {
    pub(super) config: Vec<u8>,
    pub(super) layers: Vec<Packed>,
    /// Where the layers are until this is dropped.
    _directory: tempfile::TempDir,
}

/// An image of a registry.
pub(super) struct Remote {
    client: Client,
    auth: RegistryAuth,
    reference: Reference,
    image: String,
}

/// An image without its digest: what its tag is remembered by.
pub(super) fn tagged(image: &str) -> &str {
    image.split_once('@').map_or(image, |(tagged, _digest)| tagged)
}

impl Remote {
    /// Prepares to ask. Reads the files that the configuration of the registry names.
    pub(super) fn new(
        image: &str,
        registries: &BTreeMap<String, Registry>,
    ) -> Result<Self, ImageError> {
        let reference: Reference = image.parse().map_err(|error| {
            ImageError::Format(format!("`{image}` is no reference to an image: {error}"))
        })?;
        let host = reference.resolve_registry().to_owned();
        let registry = registries.get(&host).cloned().unwrap_or_default();
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| {
                let path = path.display();
                ImageError::Machine(format!("containerd.registries.\"{host}\": {path}: {error}"))
            })
        };
        let password = match &registry.password_file {
            Some(file) => String::from_utf8_lossy(&read(file)?).trim_end().to_owned(),
            None => String::new(),
        };
        let auth = match registry.user {
            Some(user) => RegistryAuth::Basic(user, password),
            None => RegistryAuth::Anonymous,
        };
        let mut config = ClientConfig {
            connect_timeout: Some(CONNECT),
            read_timeout: Some(SILENCE),
            user_agent: concat!("dirigent/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        if let Some(ca) = &registry.ca {
            let certificate = Certificate { encoding: CertificateEncoding::Pem, data: read(ca)? };
            config.extra_root_certificates.push(certificate);
        }
        if registry.plain_http || registry.ca.is_none() && is_loopback(&host) {
            config.protocol = ClientProtocol::Http;
        }
        // What else the process has chosen stays.
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::trace!("there is a provider of cryptography already");
        }
        let client = Client::try_from(config).map_err(|error| {
            ImageError::Machine(format!("no client for the registry {host}: {error}"))
        })?;
        Ok(Self { client, auth, reference, image: image.to_owned() })
    }

    /// What its tag stands for now.
    pub(super) async fn digest(&self) -> Result<Digest, ImageError> {
        let asked = self.client.fetch_manifest_digest(&self.reference, &self.auth).await;
        let text = asked.map_err(|error| self.failed(&error))?;
        text.parse().map_err(|_other_kind| {
            ImageError::Refused(format!(
                "`{}` has a digest that is not SHA-256: {text}",
                self.image
            ))
        })
    }

    /// Everything of the image that has this digest.
    pub(super) async fn pull(
        &self,
        digest: Digest,
        into: &Path,
        limits: Limits,
        tell: Tell<'_>,
    ) -> Result<Pulled, ImageError> {
        let reference = self.reference.clone_with_digest(digest.to_string());
        let pulled = self.client.pull_image_manifest(&reference, &self.auth).await;
        let (manifest, _digest) = pulled.map_err(|error| self.failed(&error))?;
        let all: u64 = manifest.layers.iter().map(|layer| layer.size.unsigned_abs()).sum();
        if all > limits.bytes {
            return Err(ImageError::TooLarge(Bytes(limits.bytes)));
        }
        let mut config = Bounded { inner: Vec::new(), left: MAX_CONFIG };
        let fetched = self.client.pull_blob(&reference, &manifest.config, &mut config).await;
        fetched.map_err(|error| self.failed(&error))?;
        let directory = tempfile::TempDir::new_in(into)
            .map_err(|error| ImageError::io("the image's layers", &error))?;
        let mut layers = Vec::new();
        let mut progress = Progress::new(all, Instant::now(), tell);
        for (number, layer) in manifest.layers.iter().enumerate() {
            tracing::info!(
                image = self.image,
                bytes = layer.size,
                "layer {} of {} is fetched",
                number + 1,
                manifest.layers.len(),
            );
            let file = directory.path().join(number.to_string());
            layers.push(self.layer(&reference, layer, file, &mut progress).await?);
        }
        Ok(Pulled { config: config.inner, layers, _directory: directory })
    }

    async fn layer(
        &self,
        reference: &Reference,
        layer: &OciDescriptor,
        file: PathBuf,
        progress: &mut Progress<'_>,
    ) -> Result<Packed, ImageError> {
        let digest = layer.digest.parse().map_err(|_other_kind| {
            ImageError::Refused(format!("a layer's digest is not SHA-256: {}", layer.digest))
        })?;
        let length = layer.size.unsigned_abs();
        let error = |error: io::Error| ImageError::io("a layer", &error);
        let out = tokio::fs::File::create(&file).await.map_err(error)?;
        let told = Told { out, progress };
        let mut out = Bounded { inner: told, left: length };
        let fetched = self.client.pull_blob(reference, layer, &mut out).await;
        fetched.map_err(|error| self.failed(&error))?;
        tokio::io::AsyncWriteExt::flush(&mut out).await.map_err(error)?;
        Ok(Packed { file, offset: 0, length, digest: Some(digest) })
    }

    /// In words that say what to do.
    fn failed(&self, error: &OciDistributionError) -> ImageError {
        use OciDistributionError as Error;
        let registry = self.reference.resolve_registry();
        let image = &self.image;
        let refused = |message: String| ImageError::Registry { message, fault: Fault::Function };
        match error {
            Error::AuthenticationFailure(_) | Error::UnauthorizedError { .. } => refused(format!(
                "the registry {registry} does not let this worker have `{image}`: set `user` \
                     and `password_file` in `containerd.registries.\"{registry}\"`, or see whether \
                     the image exists"
            )),
            Error::ImageManifestNotFoundError(_) => refused(missing(registry, image)),
            Error::RegistryError { envelope, .. }
                if envelope.errors.iter().any(|one| {
                    let code = format!("{:?}", one.code);
                    code.contains("Unknown") && !code.contains("Upload")
                }) =>
            {
                refused(missing(registry, image))
            }
            Error::ServerError { code: 404, .. } => refused(missing(registry, image)),
            Error::DigestError(error) => ImageError::Registry {
                message: format!(
                    "what the registry {registry} gives for `{image}` is damaged: {error}"
                ),
                fault: Fault::Worker,
            },
            Error::IoError(error) => ImageError::io("the image's layers", error),
            Error::ImageIndexParsingNoPlatformResolverError => {
                refused(format!("`{image}` has nothing for this worker's kind of machine"))
            }
            other => ImageError::Registry {
                message: format!(
                    "the registry {registry} cannot be asked for `{image}`: {}",
                    innermost(other)
                ),
                fault: Fault::Worker,
            },
        }
    }
}

fn missing(registry: &str, image: &str) -> String {
    format!("the registry {registry} has no `{image}`")
}

/// The last cause is what says why nobody could be connected to.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}

fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
    let address = name.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Takes no more than was promised: a registry may send without end.
struct Bounded<W> {
    inner: W,
    left: u64,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Bounded<W> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.len() as u64 > this.left {
            let error = "the registry sends more than the manifest says";
            return Poll::Ready(Err(io::Error::other(error)));
        }
        let written = std::task::ready!(Pin::new(&mut this.inner).poll_write(context, bytes))?;
        this.left -= written as u64;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

/// How much of an image is here.
struct Progress<'a> {
    fetched: u64,
    all: u64,
    told_at: Instant,
    tell: Tell<'a>,
}

impl<'a> Progress<'a> {
    fn new(all: u64, now: Instant, tell: Tell<'a>) -> Self {
        Self { fetched: 0, all, told_at: now, tell }
    }

    /// More has come, which is told if it is time.
    fn add(&mut self, bytes: usize, now: Instant) {
        self.fetched += bytes as u64;
        if now.duration_since(self.told_at) >= TELL {
            self.told_at = now;
            (self.tell)(Bytes(self.fetched), Bytes(self.all));
        }
    }
}

/// Tells how far it is with what is written.
struct Told<'a, 'b, W> {
    out: W,
    progress: &'a mut Progress<'b>,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Told<'_, '_, W> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = std::task::ready!(Pin::new(&mut this.out).poll_write(context, bytes))?;
        this.progress.add(written, Instant::now());
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().out).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().out).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn how_far_it_is_is_told_now_and_then() {
        let (begun, told) = (Instant::now(), RefCell::new(Vec::new()));
        let tell = |fetched: Bytes, all: Bytes| told.borrow_mut().push((fetched.0, all.0));
        let mut progress = Progress::new(9, begun, &tell);
        progress.add(1, begun);
        progress.add(2, begun + TELL);
        progress.add(3, begun + TELL);
        progress.add(3, begun + TELL * 2);
        assert_eq!(told.into_inner(), [(3, 9), (9, 9)]);
    }

    #[test]
    fn loopback_is_told_from_others() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["example.org", "10.0.0.1:5000", "localhost.example.org"] {
            assert!(!is_loopback(host), "{host}");
        }
        assert_eq!(tagged("a.b/c:1@sha256:0"), "a.b/c:1");
        assert_eq!(tagged("a.b/c:1"), "a.b/c:1");
    }

    #[test]
    fn credentials_that_cannot_be_read_are_named() {
        let registry =
            Registry { password_file: Some("/nonexistent/secret".into()), ..Registry::default() };
        let registries = BTreeMap::from([("reg.example.org".to_owned(), registry)]);
        let Err(error) = Remote::new("reg.example.org/app:1", &registries) else { panic!() };
        let error = error.to_string();
        assert!(
            error.contains("/nonexistent/secret") && error.contains("reg.example.org"),
            "{error}"
        );
    }
}
