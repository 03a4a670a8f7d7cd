//! `deploy` and `rollback`: a function's files are packed and sent, its manifest is put, and the
//! command waits until the new revision is live or has failed.

use std::{
    convert::Infallible,
    fs::{self, File},
    io::{self, Seek as _},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use dirigent_core::{
    Digest, FunctionName, RevisionId, RevisionState, StartFailure,
    control::{Answer, FetchDescription},
    manifest::{ImageFiles, Manifest},
};
use dirigent_runtime::artifact::{Packed, pack};
use futures_util::stream;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use indicatif::ProgressBar;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::AsyncReadExt as _,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{
    export::{Exported, Index, artifact_path, manifest_path},
    path, unexpected, url,
};
use crate::{
    args::{ApiArgs, DeployArgs, ManifestFlags, RollbackArgs},
    client::{Body, Client, refused},
    fail::{Fail, Kind, OrFail as _, Result},
    format,
    manifest::Source,
    printer::Printer,
    project::{Files, Project},
};

/// How often somebody who waits is told so.
const TELL: Duration = Duration::from_secs(10);
/// How often is looked how much of an image has been fetched.
const LOOK: Duration = Duration::from_secs(1);

/// Read and sent at once.
const PIECE: usize = 256 << 10;

/// The body of a `PUT` of a function.
#[derive(Debug, Serialize)]
pub(crate) struct Put<'a> {
    pub(crate) manifest: &'a Manifest,
    pub(crate) artifact: Option<Digest>,
}

pub(super) async fn deploy(args: &DeployArgs, printer: Printer) -> Result {
    if let Some(folder) = args.path.as_deref()
        && let Some(index) = Index::of(folder)?
    {
        return deploy_all(args, folder, index, printer).await;
    }
    let project = Project::open(args.path.as_deref(), &args.flags)?;
    for note in &project.notes {
        printer.note(note);
    }
    let client = args.api.client()?;
    let packed = files(&project.files)?;
    project.check(packed.as_ref().map(|packed| packed.digest))?;
    let outcome = put(&client, &project.manifest, packed, args, printer).await?;
    outcome.tell(&project.manifest.name, &args.api, printer)
}

/// Every function of an export, one after the other; those that fail keep nobody back.
async fn deploy_all(args: &DeployArgs, folder: &Path, index: Index, printer: Printer) -> Result {
    if args.flags != ManifestFlags::default() {
        return Err(Fail::config(format!("{} is an export of many functions", folder.display()))
            .hint("flags are for one function: change its manifest in the export"));
    }
    let client = args.api.client()?;
    let (mut failed, all) = (Vec::new(), index.functions.len());
    for Exported { name, artifact, left_out } in index.functions {
        if !left_out.is_empty() {
            let left_out: Vec<_> = left_out.into_iter().collect();
            printer.note(&format_args!(
                "{name}: its variables were left out of the export: {}",
                left_out.join(", ")
            ));
        }
        let deployed = async {
            let manifest = Source::read(&manifest_path(folder, &name))?.parse()?;
            let archive = artifact.map(|digest| exported(folder, digest)).transpose()?;
            let outcome = put(&client, &manifest, archive, args, printer).await?;
            outcome.tell(&name, &args.api, printer)
        };
        if let Err(fail) = deployed.await {
            fail.report(&printer);
            failed.push(name.to_string());
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Fail::user(format!(
        "{} of {all} functions were not deployed: {}",
        failed.len(),
        failed.join(", ")
    ))
    .hint("the others are; what failed can be deployed again by the same command"))
}

/// An artifact of an export, which must be what it is called.
fn exported(folder: &Path, digest: Digest) -> Result<Archive> {
    let path = artifact_path(folder, digest);
    let archive = Archive::whole(&path);
    let archive = archive.or_fail(Kind::Config, || format!("cannot read {}", path.display()))?;
    if archive.digest == digest {
        return Ok(archive);
    }
    Err(Fail::config(format!("{} is damaged: its digest is {}", path.display(), archive.digest)))
}

/// Sends files and manifest, and waits for what comes of it.
async fn put(
    client: &Client,
    manifest: &Manifest,
    archive: Option<Archive>,
    args: &DeployArgs,
    printer: Printer,
) -> Result<Outcome> {
    let artifact = archive.as_ref().map(|archive| archive.digest);
    if let Some(archive) = archive {
        upload(client, archive, printer).await?;
    }
    let put = Put { manifest, artifact };
    let place = path(&manifest.name);
    // Two steps: what is durable is told at once, and the second answer is the outcome of just that.
    let quick = format!("{place}?check={}&wait=false", !args.no_check);
    let (changed, state, revision) = match client.call(Method::PUT, &quick, Some(&put)).await? {
        Answer::Deployed { changed, state, revision, .. } => {
            if changed && !args.no_check {
                printer.note(&format_args!("revision {}: starting a sandbox", revision.number));
            }
            (changed, state, revision)
        }
        other => return Err(unexpected(&other)),
    };
    if state == RevisionState::Live && !changed {
        return Ok(Outcome::Unchanged { revision });
    }
    let patient = format!("{place}/revisions/{}", revision.number);
    let image = manifest.sandbox.image.as_deref();
    let from_registry = image.filter(|image| ImageFiles::of(image).is_none());
    let (bar, mut told) = (printer.bar(0), Duration::ZERO);
    let look = async |since: Duration| {
        let fetching = match from_registry {
            Some(_) => fetching(client, &manifest.name, revision.number).await,
            None => Vec::new(),
        };
        let all: u64 = fetching.iter().map(|one| one.all.0).sum();
        if all > 0 {
            bar.set_length(all);
            bar.set_position(fetching.iter().map(|one| one.fetched.0).sum());
        }
        if since.saturating_sub(told) >= TELL && (all == 0 || bar.is_hidden()) {
            told = since;
            let still = still(revision.number, since, from_registry, &fetching);
            bar.suspend(|| printer.note(&still));
        }
    };
    let answer = watched(client.ask(Method::GET, &patient), look).await;
    bar.finish_and_clear();
    Outcome::of(answer?)
}

/// Waits, and looks meanwhile how it goes.
async fn watched<T>(answer: impl Future<Output = T>, look: impl AsyncFnMut(Duration)) -> T {
    tokio::select! {
        biased;
        answer = answer => answer,
        never = looking(look) => match never {},
    }
}

async fn looking(mut look: impl AsyncFnMut(Duration)) -> Infallible {
    let begun = Instant::now();
    let mut looks = interval_at(begun + LOOK, LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        look(begun.elapsed()).await;
    }
}

/// Who fetches the image of this revision now; nobody, if that is not to be had.
async fn fetching(client: &Client, name: &FunctionName, number: u32) -> Vec<FetchDescription> {
    match client.ask(Method::GET, &path(name)).await {
        Ok(Answer::Function(function)) => {
            function.fetching.into_iter().filter(|one| one.revision == number).collect()
        }
        Ok(_) | Err(_) => Vec::new(),
    }
}

fn still(
    revision: u32,
    since: Duration,
    from_registry: Option<&str>,
    fetching: &[FetchDescription],
) -> String {
    let waited = format!("revision {revision}: not live yet after {} s", since.as_secs());
    match (from_registry, fetching) {
        (None, _) => waited,
        (Some(image), []) => format!("{waited}; a worker that lacks `{image}` fetches it first"),
        (Some(image), fetching) => {
            let fetching: Vec<_> = fetching.iter().map(format::fetched).collect();
            format!("{waited}; `{image}`: {}", fetching.join(", "))
        }
    }
}

pub(super) async fn rollback(args: &RollbackArgs, printer: Printer) -> Result {
    let client = args.api.client()?;
    let to = args.to.map_or_else(String::new, |to| format!("&to={to}"));
    let place = format!("{}/rollback?wait=true{to}", path(&args.name));
    let answer = client.ask(Method::POST, &place).await?;
    Outcome::of(answer)?.tell(&args.name, &args.api, printer)
}

/// How a deploy or a rollback went.
#[derive(Debug)]
enum Outcome {
    Unchanged { revision: RevisionId },
    Settled { revision: RevisionId, state: RevisionState, failure: Option<StartFailure> },
}

impl Outcome {
    fn of(answer: Answer) -> Result<Self> {
        match answer {
            Answer::Settled { revision, state, failure } => {
                Ok(Self::Settled { revision, state, failure })
            }
            other => Err(unexpected(&other)),
        }
    }

    fn tell(self, name: &FunctionName, api: &ApiArgs, printer: Printer) -> Result {
        let (changed, revision, state) = match self {
            Self::Unchanged { revision } => (false, revision, RevisionState::Live),
            Self::Settled { revision, state: RevisionState::Failed, failure } => {
                return Err(failed(name, revision, failure));
            }
            Self::Settled { revision, state, .. } => (true, revision, state),
        };
        let url = url(api, name);
        if printer.is_json() {
            return printer.json(&serde_json::json!({
                "name": name,
                "changed": changed,
                "revision": revision.number,
                "state": state,
                "url": url,
            }));
        }
        let number = revision.number;
        if !changed {
            printer.note(&format_args!("{name}: unchanged, revision {number} is live"));
        } else if state == RevisionState::Live {
            printer.note(&format_args!("{name}: revision {number} is live"));
        } else {
            printer.note(&format_args!("{name}: revision {number} was overtaken by a newer one"));
        }
        match url {
            Some(url) => printer.line(&url),
            None => Ok(()),
        }
    }
}

fn failed(name: &FunctionName, revision: RevisionId, failure: Option<StartFailure>) -> Fail {
    let number = revision.number;
    let Some(failure) = failure else {
        return Fail::user(format!("{name}: revision {number} failed"))
            .hint(format!("dirigent describe {name}"));
    };
    let fail = Fail::user(format!("{name}: revision {number} failed: {}", failure.cause))
        .details(failure.log_tail.iter().map(|line| format!("| {line}")));
    let what_now = "what was live before stays live; mend the function and deploy again";
    fail.hint(what_now).hint(format!("dirigent describe {name}"))
}

/// The archive of an artifact, to be sent.
struct Archive {
    digest: Digest,
    bytes: u64,
    file: File,
}

impl Archive {
    fn of(packed: &Packed) -> io::Result<Self> {
        Ok(Self { digest: packed.digest, bytes: packed.bytes, file: packed.archive.reopen()? })
    }

    /// A file as it is.
    fn whole(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let bytes = io::copy(&mut file, &mut hasher)?;
        file.rewind()?;
        Ok(Self { digest: Digest(hasher.finalize().into()), bytes, file })
    }
}

/// Files as an artifact, sent.
pub(crate) async fn send(client: &Client, sent: &Files, printer: Printer) -> Result<Digest> {
    let archive = files(sent)?;
    let archive = archive.ok_or_else(|| Fail::internal("there are no files"))?;
    let digest = archive.digest;
    upload(client, archive, printer).await?;
    Ok(digest)
}

/// The artifact, if there are files.
fn files(files: &Files) -> Result<Option<Archive>> {
    let bad = |folder: &Path| {
        let folder = folder.display().to_string();
        move || format!("cannot pack {folder}")
    };
    match files {
        Files::None => Ok(None),
        Files::Folder(folder) => {
            let packed = pack(folder).or_fail(Kind::Config, bad(folder))?;
            Ok(Some(Archive::of(&packed)?))
        }
        Files::Image(file) => {
            let archive = Archive::whole(file);
            Ok(Some(archive.or_fail(Kind::Config, || format!("cannot read {}", file.display()))?))
        }
        Files::File(file) => {
            // An artifact is a folder: one with this file alone.
            let folder = tempfile::tempdir()?;
            let name = file.file_name().unwrap_or_default();
            fs::copy(file, folder.path().join(name)).or_fail(Kind::Config, bad(file))?;
            let packed = pack(folder.path()).or_fail(Kind::Config, bad(file))?;
            Ok(Some(Archive::of(&packed)?))
        }
    }
}

/// Sends the archive unless the control plane has it.
async fn upload(client: &Client, archive: Archive, printer: Printer) -> Result {
    let place = format!("/v1/artifacts/{}", archive.digest);
    let known = client.follow(Method::HEAD, &place, Bytes::new()).await?;
    match known.status() {
        status if status.is_success() => return Ok(()),
        StatusCode::NOT_FOUND => {}
        _ => return Err(refused(known).await),
    }
    printer.note(&format_args!("sending {}", format::bytes(archive.bytes)));
    let is_long = archive.bytes > 8 << 20;
    let bar = if is_long { printer.bar(archive.bytes) } else { ProgressBar::hidden() };
    let file = tokio::fs::File::from_std(archive.file);
    let shown = bar.clone();
    client.send(Method::PUT, &place, pieces(file, shown)).await?;
    bar.finish_and_clear();
    Ok(())
}

fn pieces(file: tokio::fs::File, bar: ProgressBar) -> Body {
    let next = |(mut file, bar): (tokio::fs::File, ProgressBar)| async move {
        let mut piece = bytes::BytesMut::with_capacity(PIECE);
        match file.read_buf(&mut piece).await {
            Ok(0) => None,
            Ok(count) => {
                bar.inc(u64::try_from(count).unwrap_or_default());
                Some((Ok(Frame::data(piece.freeze())), (file, bar)))
            }
            Err(error) => Some((Err::<_, io::Error>(error), (file, bar))),
        }
    };
    let frames = stream::unfold((file, bar), next);
    StreamBody::new(Box::pin(frames)).boxed()
}

#[cfg(test)]
mod tests {
    use dirigent_core::Bytes as Size;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_long_is_told_so() {
        let mut said = Vec::new();
        let answer = async {
            tokio::time::sleep(LOOK * 2 + LOOK / 2).await;
            7
        };
        let look = async |since| said.push(still(3, since, Some("r.org/app:1"), &[]));
        assert_eq!(watched(answer, look).await, 7);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[1].starts_with("revision 3: not live yet after 2 s; "), "{said:?}");
        assert!(said[1].contains("`r.org/app:1`"), "{said:?}");
        assert_eq!(still(3, TELL, None, &[]), "revision 3: not live yet after 10 s");
        let (worker, fetched, all) = ("w1".into(), Size::mib(3), Size::mib(40));
        let fetching = [FetchDescription { revision: 3, worker, fetched, all }];
        assert_eq!(
            still(3, TELL, Some("r.org/app:1"), &fetching),
            "revision 3: not live yet after 10 s; `r.org/app:1`: w1 has 3.0MiB of 40MiB"
        );
    }
}
