//! Who may come in.

use std::{fmt, io, pin::Pin, sync::Arc, task};

use dirigent_core::{Member, Role};
use dirigent_service::{
    Clock,
    tls::{Certificate, Files, Stream},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};
use tonic::{Extensions, Status, metadata::MetadataMap, transport::server::Connected};

use crate::{NAME, NAME_BYTES};

/// The members of a cluster, as a control plane knows them.
pub trait Members: fmt::Debug + Send + Sync {
    /// Whom a certificate of the cluster's authority names.
    ///
    /// # Errors
    /// Why whom it names is no member, and what to do about it.
    fn admit(&self, certificate: &Certificate) -> Result<Member, String>;

    /// Changes when somebody may be no member any more.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Another certificate for the one with this one, asked for by `request`: PEM. May block.
    ///
    /// # Errors
    /// Why there is none, and what to do about it.
    fn renew(&self, certificate: &Certificate, request: &str) -> Result<String, String>;
}

/// What opens the doors.
#[derive(Clone)]
pub enum Entrance {
    /// A token that is tried; nothing is encrypted.
    Token(Arc<dyn Fn(&str) -> bool + Send + Sync>),
    /// Certificates of members; ours are in the files.
    Certificates(Files, Arc<dyn Members>),
}

impl fmt::Debug for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "Token(..)",
            Self::Certificates(..) => "Certificates(..)",
        })
    }
}

/// Somebody who was let in.
#[derive(Debug)]
pub(super) struct Guest {
    /// What it is called.
    pub(super) name: String,
    /// Its certificate, where certificates count.
    certificate: Option<Certificate>,
}

/// As a header of an invocation the text that follows.
fn text<'a>(headers: &'a MetadataMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

impl Entrance {
    /// Lets in who calls, for what this role does.
    pub(super) fn admit(
        &self,
        headers: &MetadataMap,
        extensions: &Extensions,
        role: Role,
    ) -> Result<Guest, Status> {
        match self {
            Self::Token(opens) => {
                let token = text(headers, "authorization");
                let token = token.and_then(|value| value.strip_prefix("Bearer "));
                if !token.is_some_and(|token| opens(token)) {
                    return Err(Status::unauthenticated(
                        "wrong token: --peer-token names the file that this control plane made",
                    ));
                }
                match text(headers, NAME) {
                    Some(name) if !name.is_empty() && name.len() <= NAME_BYTES => {
                        Ok(Guest { name: name.to_owned(), certificate: None })
                    }
                    _ => Err(Status::invalid_argument(format!(
                        "{NAME} must be a name of up to {NAME_BYTES} characters"
                    ))),
                }
            }
            Self::Certificates(_, members) => {
                let certificate = shown(extensions)?;
                let member = members.admit(certificate).map_err(Status::permission_denied)?;
                if member.role != role {
                    return Err(Status::permission_denied(format!(
                        "this certificate is that of {member}, which does not do what a {role} does: join as a {role}"
                    )));
                }
                // No name has a slash in it, so that nobody else is called so.
                let name = match text(headers, NAME).map(str::parse::<u32>) {
                    None => member.name().to_owned(),
                    Some(Ok(number)) => format!("{}/{number}", member.name()),
                    Some(Err(_not_a_number)) => {
                        return Err(Status::invalid_argument(format!("{NAME} must be a number")));
                    }
                };
                Ok(Guest { name, certificate: Some(certificate.clone()) })
            }
        }
    }

    /// Returns when a guest has to leave, with the reason. Cancellation safe.
    pub(super) async fn over(&self, guest: &Guest) -> String {
        let (Self::Certificates(_, members), Some(certificate)) = (self, &guest.certificate) else {
            return std::future::pending().await;
        };
        let mut changes = members.changes();
        loop {
            if let Err(why) = members.admit(certificate) {
                return why;
            }
            tokio::select! {
                biased;
                // It will have another one by then, and comes again with it.
                over = Clock::step_to(certificate.not_after) => if over {
                    return "its certificate has run out".to_owned();
                },
                changed = changes.changed() => if changed.is_err() {
                    return "this control plane ends".to_owned();
                },
            }
        }
    }

    /// A new certificate for who calls.
    pub(super) async fn renew(
        &self,
        extensions: &Extensions,
        request: String,
    ) -> Result<String, Status> {
        let Self::Certificates(_, members) = self else {
            return Err(Status::failed_precondition("there are no certificates here"));
        };
        let (members, certificate) = (Arc::clone(members), shown(extensions)?.clone());
        let signed = tokio::task::spawn_blocking(move || members.renew(&certificate, &request));
        let signed = signed.await.map_err(|error| Status::internal(error.to_string()))?;
        signed.map_err(Status::permission_denied)
    }
}

fn shown(extensions: &Extensions) -> Result<&Certificate, Status> {
    let shown = extensions.get::<Option<Arc<Certificate>>>().and_then(Option::as_deref);
    shown.ok_or_else(|| Status::unauthenticated("a certificate is needed: `dirigent join`"))
}

/// A connection that tells whose it is.
#[derive(Debug)]
pub(super) struct Arrival(pub(super) Stream);

impl Connected for Arrival {
    type ConnectInfo = Option<Arc<Certificate>>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.0.peer().cloned().map(Arc::new)
    }
}

impl AsyncRead for Arrival {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> task::Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Arrival {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buf: &[u8],
    ) -> task::Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> task::Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> task::Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> task::Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
