//! Artifacts between control planes, whichever of them leads.

use std::{fmt, io, net::SocketAddr, pin::Pin};

use bytes::Bytes;
use dirigent_core::Digest;
use dirigent_proto::v1::{ArtifactPiece, ArtifactRequest, KeepRequest};
use futures_util::{Stream, StreamExt as _};
use tonic::Status;

use crate::Reach;

/// The largest piece.
const PIECE: usize = 256 << 10;

/// What is answered in the end; the error says why not.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send>>;
/// The bytes of an artifact.
pub type Pieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// The artifacts of a control plane, as it offers them to the others.
pub trait Depot: fmt::Debug + Send + Sync + 'static {
    /// The bytes of one that is held here.
    fn read(&self, digest: Digest) -> Answer<Pieces>;

    /// Keep one, which is read at `from` unless it is held already.
    fn keep(&self, digest: Digest, from: SocketAddr) -> Answer<()>;
}

pub(crate) fn digest(bytes: &[u8]) -> Result<Digest, Status> {
    let bytes = bytes.try_into();
    bytes.map(Digest).map_err(|_length| Status::invalid_argument("a digest has 32 bytes"))
}

/// Pieces on the wire.
pub(crate) fn outward(pieces: Pieces) -> impl Stream<Item = Result<ArtifactPiece, Status>> + Send {
    pieces.flat_map(|piece| {
        let parts: Vec<Result<ArtifactPiece, Status>> = match piece {
            Ok(bytes) => {
                bytes.chunks(PIECE).map(|data| Ok(ArtifactPiece { data: data.to_vec() })).collect()
            }
            Err(error) => vec![Err(Status::data_loss(error.to_string()))],
        };
        futures_util::stream::iter(parts)
    })
}

impl Reach {
    /// Reads an artifact of the control plane at `at`.
    ///
    /// # Errors
    /// Why it cannot be had there.
    pub async fn read_artifact(&self, at: SocketAddr, digest: Digest) -> Result<Pieces, String> {
        let asked = async {
            let request = self.request(ArtifactRequest { digest: digest.0.to_vec() });
            let (mut client, _) = self.connect(at).await?;
            client.read_artifact(request).await
        };
        let response = asked.await.map_err(|status| status.message().to_owned())?;
        let pieces = response
            .into_inner()
            .map(|piece| piece.map(|piece| Bytes::from(piece.data)).map_err(io::Error::other));
        Ok(Box::pin(pieces))
    }

    /// Has the control plane at `at` keep an artifact, which it reads at `from`.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn keep_artifact(
        &self,
        at: SocketAddr,
        digest: Digest,
        from: SocketAddr,
    ) -> Result<(), String> {
        let asked = async {
            let (digest, from) = (digest.0.to_vec(), from.to_string());
            let request = self.request(KeepRequest { digest, from });
            let (mut client, _) = self.connect(at).await?;
            client.keep_artifact(request).await
        };
        asked.await.map(drop).map_err(|status| status.message().to_owned())
    }
}
