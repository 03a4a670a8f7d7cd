//! Whether those who connect to a worker are members still: a certificate outlives its member, and
//! control planes hear at once who was removed.

use std::time::{Duration, UNIX_EPOCH};

use dirigent_core::Role;
use dirigent_proto::v1::{VouchRequest, VouchResponse, vouch_request::Shown};
use dirigent_service::tls::Certificate;
use tokio::time::timeout;
use tonic::Status;

use crate::{client::Reach, entrance::Entrance};

/// Certificates of one question.
pub(crate) const SHOWN: usize = 1024;
/// Until a control plane has answered; it reads its memory.
const WITHIN: Duration = Duration::from_secs(2);

impl Reach {
    /// For each certificate in turn, all by the cluster's authority, why it is no member's any more;
    /// by whichever control plane answers first of all in a random order.
    ///
    /// # Errors
    /// If none answers; why the last did not.
    pub(crate) async fn vouch(&self, shown: &[Certificate]) -> Result<Vec<Option<String>>, Status> {
        let asked = shown.iter().take(SHOWN).map(|certificate| Shown {
            uri: certificate.uri.clone().unwrap_or_default(),
            serial: certificate.serial.clone(),
        });
        let asked = VouchRequest { shown: asked.collect() };
        let all = self.addresses();
        // All workers ask, and all control planes know.
        let first = rand::random_range(0..all.len().max(1));
        let mut refused = Status::unavailable("nobody was asked");
        for at in all.iter().cycle().skip(first).take(all.len()) {
            let answer = async {
                let (mut client, _) = self.connect(*at).await?;
                client.vouch(self.request(asked.clone())).await
            };
            match timeout(WITHIN, answer).await {
                Ok(Ok(answer)) => {
                    let VouchResponse { refused } = answer.into_inner();
                    let why = |why: String| (!why.is_empty()).then_some(why);
                    return Ok(refused.into_iter().map(why).collect());
                }
                Ok(Err(status)) => refused = status,
                Err(_elapsed) => refused = Status::deadline_exceeded("it is silent"),
            }
        }
        Err(refused)
    }
}

impl Entrance {
    /// The answer to a worker.
    pub(crate) fn vouch(&self, asked: VouchRequest) -> Result<VouchResponse, Status> {
        let Self::Certificates(_, members) = self else {
            return Err(Status::failed_precondition("there are no certificates here"));
        };
        if asked.shown.len() > SHOWN {
            return Err(Status::invalid_argument(format!("ask for {SHOWN} at most")));
        }
        let verdict = |Shown { uri, serial }| {
            // When it is valid the worker sees by itself.
            let (not_before, not_after) = (UNIX_EPOCH, UNIX_EPOCH);
            let read = Certificate { uri: Some(uri), serves: false, serial, not_before, not_after };
            match members.admit(&read) {
                Ok(member) if member.role == Role::DataPlane => String::new(),
                Ok(member) => format!("{member} is no data plane"),
                Err(why) => why,
            }
        };
        Ok(VouchResponse { refused: asked.shown.into_iter().map(verdict).collect() })
    }
}
