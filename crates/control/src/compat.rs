//! Registration as the published artifact does it, so that its load generator runs unchanged: a
//! form posted to `/` or `/registerService`, answered with the addresses where functions are
//! called. There is no token in that protocol, so it is offered on loopback only, runs only
//! commands that the operator named, and refuses browsers.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::State,
    response::{IntoResponse, Response},
    routing::post,
};
use dirigent_core::{
    Bytes, FunctionName, MilliCpu,
    control::Call,
    manifest::{Invocation, Manifest, ManifestResources, Sandbox, Scaling},
};
use http::{HeaderMap, StatusCode, header::ORIGIN};

use crate::api::{Api, ApiError};

/// Which command stands for which image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Images {
    commands: BTreeMap<String, Vec<String>>,
}

impl Images {
    pub(crate) fn new(commands: BTreeMap<String, Vec<String>>) -> Self {
        Self { commands }
    }

    /// The operator's command, else a built-in one for the artifact's own images.
    fn command(&self, image: &str) -> Option<Vec<String>> {
        if let Some(command) = self.commands.get(image) {
            return Some(command.clone());
        }
        let name = image.rsplit('/').next()?;
        let name = name.split([':', '@']).next()?;
        name.strip_prefix("dirigent_")?;
        Some(["dirigent", "example", "trace"].map(str::to_owned).to_vec())
    }
}

/// A form at most.
const FORM_LIMIT: usize = 64 << 10;

/// From a form's head to its last byte.
const FORM_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) fn routes() -> Router<Api> {
    Router::new().route("/", post(register)).route("/registerService", post(register))
}

async fn register(State(api): State<Api>, headers: HeaderMap, body: Body) -> Response {
    match try_register(&api, &headers, body).await {
        Ok(addresses) => addresses.into_response(),
        // The artifact's client reads the status and shows the text.
        Err(error) => (error.status, error.message).into_response(),
    }
}

async fn try_register(api: &Api, headers: &HeaderMap, body: Body) -> Result<String, ApiError> {
    // A page in a browser can post forms to loopback; it cannot help saying so.
    if headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site") {
        let message = "registration is not for browsers";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", message));
    }
    let Some(address) = api.functions() else {
        let message = "no data plane listens yet";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message));
    };
    let bytes = form(body).await?;
    let manifest = Form::parse(&bytes).manifest(api.compat())?;
    let (name, spec, settings) =
        manifest.validate(None).map_err(|error| ApiError::bad_request(error.to_string()))?;
    // Without a check: the artifact answers a registration before anything was started.
    let call = Call::Deploy { name, spec, settings, check: false };
    api.deploy(call).await.map_err(|error| ApiError {
        // The artifact's one code for a registration that it will not do.
        status: if error.status.is_client_error() { StatusCode::CONFLICT } else { error.status },
        ..error
    })?;
    Ok(addresses(&[address]))
}

/// The bytes of a form, of which nobody who sends it has shown who he is.
async fn form(body: Body) -> Result<bytes::Bytes, ApiError> {
    let read = tokio::time::timeout(FORM_TIMEOUT, to_bytes(body, FORM_LIMIT)).await;
    let read = read.map_err(|_elapsed| {
        let message = format!("the form did not come within {} s", FORM_TIMEOUT.as_secs());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
    })?;
    read.map_err(|_too_large| ApiError::too_large("the form", FORM_LIMIT as u64))
}

/// `host:port[;host:port]`, without a newline.
fn addresses(data_planes: &[SocketAddr]) -> String {
    let texts: Vec<String> = data_planes.iter().map(SocketAddr::to_string).collect();
    texts.join(";")
}

/// The fields of a form that mean something here; the first value of each name, as Go's
/// `FormValue` takes it.
struct Form {
    fields: BTreeMap<String, String>,
}

impl Form {
    fn parse(bytes: &[u8]) -> Self {
        let mut fields = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(bytes) {
            fields.entry(name.into_owned()).or_insert_with(|| value.into_owned());
        }
        Self { fields }
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    fn needed(&self, name: &str) -> Result<&str, ApiError> {
        self.text(name)
            .ok_or_else(|| ApiError::bad_request(format!("the field `{name}` is missing")))
    }

    fn number(&self, name: &str) -> Result<Option<u32>, ApiError> {
        self.text(name)
            .map(|text| {
                text.parse().map_err(|_not_a_number| {
                    ApiError::bad_request(format!("`{text}` is not a number for `{name}`"))
                })
            })
            .transpose()
    }

    fn manifest(&self, images: Option<&Images>) -> Result<Manifest, ApiError> {
        let name: FunctionName = self
            .needed("name")?
            .parse()
            .map_err(|error| ApiError::bad_request(format!("`name`: {error}")))?;
        let image = self.needed("image")?;
        let command = images.and_then(|images| images.command(image)).ok_or_else(|| {
            ApiError::bad_request(format!(
                "no command is known for the image `{image}`: add it to [compat.images]"
            ))
        })?;
        let port = self
            .text("port_forwarding")
            .map(str::parse)
            .transpose()
            .map_err(|_not_a_port| ApiError::bad_request("`port_forwarding` is not a port"))?;
        let sweep = match self.text("cold_start_sweep") {
            None | Some("0" | "f" | "F" | "false" | "False" | "FALSE") => false,
            Some("1" | "t" | "T" | "true" | "True" | "TRUE") => true,
            Some(other) => {
                let message = format!("`{other}` is not true or false for `cold_start_sweep`");
                return Err(ApiError::bad_request(message));
            }
        };
        Ok(Manifest {
            name,
            sandbox: Sandbox { port, ..Sandbox::new(dirigent_core::RuntimeKind::Process, command) },
            resources: self.resources()?,
            scaling: self.scaling(sweep)?,
            invocation: Invocation {
                // The artifact has no time-out of its own; its clients have.
                timeout: PATIENT,
                queue_timeout: PATIENT,
                max_queue: 100_000,
                ..Invocation::default()
            },
            env: BTreeMap::new(),
        })
    }

    /// Milli-CPU and MiB. The artifact's default of 1 and 1 means that nothing was asked for.
    fn resources(&self) -> Result<ManifestResources, ApiError> {
        let cpu = self.number("requested_cpu")?.filter(|cpu| *cpu > 1).unwrap_or(10);
        let memory = self.number("requested_memory")?.filter(|memory| *memory > 1).unwrap_or(16);
        Ok(ManifestResources {
            cpu: MilliCpu(cpu),
            memory: Bytes::mib(u64::from(memory).max(SMALLEST_MIB)),
        })
    }

    /// The artifact's profiles: one sandbox at most and short windows for its cold-start sweep.
    fn scaling(&self, sweep: bool) -> Result<Scaling, ApiError> {
        let max = self.number("scaling_upper_bound")?.filter(|max| *max > 0);
        let min = self.number("scaling_lower_bound")?.unwrap_or(0);
        let (usual_max, keep_alive) = if sweep { (1, 6) } else { (MANY, 60) };
        let max = max.unwrap_or(usual_max).min(MANY);
        Ok(Scaling {
            min: min.min(max),
            max,
            concurrency: 1,
            keep_alive: Duration::from_secs(keep_alive).into(),
        })
    }
}

/// Long enough for every call of a trace.
const PATIENT: Duration = Duration::from_secs(15 * 60);

/// Where the artifact says "no limit".
const MANY: u32 = 10_000;

/// Less does not hold a program.
const SMALLEST_MIB: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(form: &str) -> Result<Manifest, ApiError> {
        let own = vec!["./mine".to_owned()];
        let images = Images::new([("registry/mine:1".to_owned(), own)].into());
        Form::parse(form.as_bytes()).manifest(Some(&images))
    }

    #[test]
    fn the_artifacts_images_are_the_built_in_functions() {
        let images = Images::default();
        for image in [
            "docker.io/cvetkovic/dirigent_empty_function:latest",
            "docker.io/cvetkovic/dirigent_trace_function:latest",
            "dirigent_anything",
        ] {
            assert_eq!(images.command(image).unwrap(), ["dirigent", "example", "trace"]);
        }
        assert_eq!(images.command("docker.io/library/nginx"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_form_that_drips_has_a_deadline() {
        let begun = tokio::time::Instant::now();
        let drops = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, std::io::Error>("x"), ()))
        });
        let error = form(Body::from_stream(drops)).await.unwrap_err();
        assert_eq!((error.status, begun.elapsed()), (StatusCode::REQUEST_TIMEOUT, FORM_TIMEOUT));
    }

    #[test]
    fn a_form_becomes_a_manifest() {
        let manifest = manifest(
            "name=f-1&image=registry%2Fmine%3A1&port_forwarding=80&port_forwarding=tcp\
             &requested_cpu=250&requested_memory=120&scaling_upper_bound=5&unknown=x",
        )
        .unwrap();
        assert_eq!(manifest.name.to_string(), "f-1");
        assert_eq!(manifest.sandbox.command, ["./mine"]);
        assert_eq!(manifest.sandbox.port, Some(80));
        assert_eq!(manifest.resources.cpu, MilliCpu(250));
        assert_eq!(manifest.resources.memory, Bytes::mib(120));
        assert_eq!(manifest.scaling.max, 5);
        assert_eq!(manifest.scaling.keep_alive, Duration::from_secs(60).into());
        assert_eq!(manifest.validate(None).map(|_valid| ()), Ok(()));
    }

    #[test]
    fn a_cold_start_sweep_has_one_sandbox_and_short_windows() {
        let manifest = manifest("name=f&image=dirigent_empty_function&cold_start_sweep=true");
        let scaling = manifest.unwrap().scaling;
        assert_eq!((scaling.max, scaling.keep_alive), (1, Duration::from_secs(6).into()));
    }

    #[test]
    fn wrong_fields_are_refused_by_name() {
        for (form, wanted) in [
            ("image=dirigent_x", "`name`"),
            ("name=F_1&image=dirigent_x", "`name`"),
            ("name=f", "`image`"),
            ("name=f&image=nginx", "[compat.images]"),
            ("name=f&image=dirigent_x&requested_cpu=lots", "`requested_cpu`"),
            ("name=f&image=dirigent_x&port_forwarding=99999", "`port_forwarding`"),
            ("name=f&image=dirigent_x&cold_start_sweep=perhaps", "`cold_start_sweep`"),
        ] {
            let error = manifest(form).unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
            assert!(error.message.contains(wanted), "{form}: {}", error.message);
        }
    }
}
