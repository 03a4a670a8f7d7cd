//! The roles of one process and how they are joined.

use std::{
    path::Path,
    sync::{Arc, OnceLock, Weak},
};

use dirigent_service::Tasks;

use super::{FUNCTIONS_FILE, forget, ready::hello};
use crate::{
    config::Config,
    fail::Result,
    roles::{
        End, Kept, Started, control_failed, control_plane, data_plane, leave, proxy_failed,
        runtimes, worker, worker_failed,
    },
};

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Roles {
    pub(super) control: dirigent_control::Running,
    pub(super) proxy: Arc<dirigent_proxy::Running>,
    pub(super) worker: dirigent_worker::Running,
    kept: Kept,
}

impl Roles {
    pub(super) async fn start(config: &Config, dir: &Path, tasks: &Tasks) -> Result<Self> {
        let mut control_config = control_plane(config, dir);
        // The control plane serves the data plane's metrics, and is there before it.
        let data_plane_page = Arc::new(OnceLock::<Weak<dirigent_proxy::Running>>::new());
        let served = Arc::clone(&data_plane_page);
        control_config.pages.push(Arc::new(move |page| {
            if let Some(proxy) = served.get().and_then(Weak::upgrade) {
                page.push_str(&proxy.metrics_page());
            }
        }));
        let control =
            dirigent_control::start(control_config, tasks).await.map_err(control_failed)?;
        if config.hello {
            // Whoever calls it as soon as somebody listens is answered by it.
            hello(config, dir, &control.api_url()).await?;
        }
        // Left by a life that was killed, it would be taken for this one's.
        forget(&dir.join(FUNCTIONS_FILE));
        let proxy = Arc::new(
            dirigent_proxy::start(
                data_plane(config, dir),
                control.data_planes.clone(),
                control.data_planes_bulk.clone(),
                tasks,
            )
            .await
            .map_err(proxy_failed)?,
        );
        data_plane_page.get_or_init(|| Arc::downgrade(&proxy));
        control.set_functions(proxy.address);
        let Started { runtimes, kept } = runtimes(config, dir, vec![control.api.port()]).await?;
        let started = dirigent_worker::start(
            worker(config, dir),
            runtimes,
            control.workers.clone(),
            control.workers_bulk.clone(),
            tasks,
        )
        .await;
        match started {
            Ok(worker) => Ok(Self { control, proxy, worker, kept }),
            Err(error) => {
                leave(kept, End::Detach).await;
                Err(worker_failed(error))
            }
        }
    }

    /// Ends what is no task: the runtimes' threads and the keeper.
    pub(super) async fn end(self, how: End) {
        leave(self.kept, how).await;
    }
}
