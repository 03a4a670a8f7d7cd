//! A certificate is renewed with a third of its life left, over a connection made with the present
//! one; what is connected goes on, and new connections use the new one.

use std::{net::SocketAddr, time::Duration};

use dirigent_proto::v1;
use dirigent_service::{
    Clock, OnCancel, Tasks,
    tls::{Files, request},
};
use tokio::time::{sleep, timeout};
use tonic::Status;

use crate::{
    client::Reach,
    connect::{Grievance, explained},
};

/// Until a control plane has signed: it writes to its disk.
const WITHIN: Duration = Duration::from_secs(10);
/// A renewal that failed is tried again after a tenth of what is left, within these bounds.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

impl Reach {
    /// Renews the certificate in time, if one is shown at all, until `tasks` end.
    pub fn keep_renewed(&self, tasks: &Tasks) {
        let Some(files) = self.files().cloned() else { return };
        let this = self.clone();
        tasks.run("renew the certificate", OnCancel::Abort, async move {
            let grievance = Grievance::default();
            loop {
                let certificate = files.certificate();
                if !Clock::step_to(certificate.renew_at()).await {
                    continue;
                }
                let now = Clock::wall();
                match this.renewed(&files).await {
                    Ok(()) => tracing::info!(serial = files.certificate().serial, "renewed"),
                    Err(why) => {
                        grievance.certificate(&why);
                        let left = certificate.not_after.duration_since(now).unwrap_or_default();
                        sleep((left / 10).clamp(RETRY.0, RETRY.1)).await;
                    }
                }
            }
        });
    }

    async fn renewed(&self, files: &Files) -> Result<(), String> {
        let (key, request) = request().map_err(|error| error.to_string())?;
        let mut refused = Status::unavailable("nobody was asked");
        for at in self.addresses() {
            match self.ask(*at, request.clone()).await {
                Ok(certificate) => {
                    return files.replace(&certificate, &key).map_err(|error| error.to_string());
                }
                Err(status) => refused = status,
            }
        }
        Err(refused.message().to_owned())
    }

    async fn ask(&self, at: SocketAddr, request: String) -> Result<String, Status> {
        let (mut client, complaint) = self.connect(at).await?;
        let asked = client.renew(self.request(v1::RenewRequest { request }));
        let answer = timeout(WITHIN, asked).await;
        let answer = answer.map_err(|_elapsed| Status::deadline_exceeded("it is silent"))?;
        let answer = answer.map_err(|status| explained(status, &complaint))?;
        Ok(answer.into_inner().certificate)
    }
}
