//! `export`: functions as files from which `deploy` makes them again, here or elsewhere.
//!
//! ```text
//! export.json                       what there is, written last
//! functions/NAMESPACE/NAME.toml     the manifest of what is live
//! artifacts/SHA-256                 the bytes that were sent
//! ```
//!
//! The same functions give the same bytes: neither ids, numbers of revisions nor times are in it.
//! Values of environments are secrets: they are written only where that is asked for, and files may be
//! read by their owner only.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use dirigent_core::{
    Digest, FunctionName,
    control::{Answer, FunctionDescription, RevisionDescription},
    manifest::Manifest,
};
use dirigent_service::state::private_dir;
use http::Method;
use http_body_util::BodyExt as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{functions, path, unexpected};
use crate::{
    args::ExportArgs,
    client::{Client, succeeded},
    fail::{Fail, Kind, OrFail as _, Result},
    format,
    printer::Printer,
};

/// What is in the folder, and whether it is whole.
pub(super) const INDEX: &str = "export.json";

/// Raised when exports of before cannot be read any more.
const FORMAT: u32 = 1;

/// The content of `export.json`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    format: u32,
    /// In the order of their names.
    pub(super) functions: Vec<Exported>,
}

/// A function in an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Exported {
    pub(super) name: FunctionName,
    pub(super) artifact: Option<Digest>,
    /// Variables whose values were left out.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) left_out: BTreeSet<String>,
}

impl Index {
    /// That of a folder, if it is an export.
    pub(super) fn of(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(INDEX);
        if !path.is_file() {
            return Ok(None);
        }
        let unusable = || format!("cannot use {}", path.display());
        let text = fs::read(&path).or_fail(Kind::Config, unusable)?;
        let index: Self = serde_json::from_slice(&text).or_fail(Kind::Config, unusable)?;
        if index.format != FORMAT {
            let found = index.format;
            return Err(Fail::config(format!("{} has format {found}", path.display()))
                .hint("use the version of dirigent that wrote it, or a newer one"));
        }
        Ok(Some(index))
    }
}

/// Where a function's manifest is.
pub(super) fn manifest_path(folder: &Path, name: &FunctionName) -> PathBuf {
    folder.join("functions").join(name.namespace()).join(format!("{}.toml", name.name()))
}

/// Where an artifact is.
pub(super) fn artifact_path(folder: &Path, digest: Digest) -> PathBuf {
    folder.join("artifacts").join(digest.hex())
}

pub(super) async fn export(args: &ExportArgs, printer: Printer) -> Result {
    let client = args.api.client()?;
    let described = describe(&client, &args.names).await?;
    let folder = &args.folder;
    with_values(&described, args)?;
    make(folder)?;
    let bar = printer.bar(u64::try_from(described.len()).unwrap_or_default());
    let (mut artifacts, mut exported) = (BTreeMap::<Digest, u64>::new(), Vec::new());
    for (description, revision) in &described {
        let name = &description.summary.name;
        let mut manifest = Manifest::of(name.clone(), &revision.spec, &description.settings);
        let mut left_out = BTreeSet::new();
        if args.with_env && !manifest.env.is_empty() {
            manifest.env = values(&client, name, revision.number).await?;
        } else {
            left_out.extend(std::mem::take(&mut manifest.env).into_keys());
        }
        let text = toml::to_string(&manifest)
            .or_fail(Kind::Internal, || format!("the manifest of {name} as TOML"))?;
        write(&manifest_path(folder, name), text.as_bytes())?;
        // An image of a registry stays there.
        let of_registry = revision.spec.sandbox.registry_image().is_some();
        let artifact = revision.spec.artifact.filter(|_| !of_registry);
        if let Some(digest) = artifact.filter(|digest| !artifacts.contains_key(digest)) {
            artifacts.insert(digest, fetch(&client, digest, folder).await?);
        }
        exported.push(Exported { name: name.clone(), artifact, left_out });
        bar.inc(1);
    }
    bar.finish_and_clear();
    let index = Index { format: FORMAT, functions: exported };
    let text = serde_json::to_string_pretty(&index)?;
    // Last: without it nothing here is an export.
    write(&folder.join(INDEX), format!("{text}\n").as_bytes())?;
    let left_out = index.functions.iter().filter(|one| !one.left_out.is_empty()).count();
    told(folder, index.functions.len(), left_out, &artifacts, printer)
}

fn told(
    folder: &Path,
    functions: usize,
    left_out: usize,
    artifacts: &BTreeMap<Digest, u64>,
    printer: Printer,
) -> Result {
    let bytes: u64 = artifacts.values().sum();
    if printer.is_json() {
        return printer.json(&json!({
            "folder": folder,
            "functions": functions,
            "without_env": left_out,
            "artifacts": artifacts.len(),
            "artifact_bytes": bytes,
        }));
    }
    let (count, bytes) = (artifacts.len(), format::bytes(bytes));
    printer.note(&format_args!("{functions} functions, {count} artifacts ({bytes})"));
    if left_out > 0 {
        printer.note(&format_args!("the variables of {left_out} functions were left out"));
    }
    printer.note(&format_args!("`dirigent deploy {}` makes them again", folder.display()));
    printer.line(&folder.display())
}

type Described = Vec<(Box<FunctionDescription>, RevisionDescription)>;

/// These functions, or all, each with the revision that is live, or the newest where none is.
async fn describe(client: &Client, names: &[FunctionName]) -> Result<Described> {
    let names: BTreeSet<FunctionName> = if names.is_empty() {
        functions::all(client).await?.into_iter().map(|summary| summary.name).collect()
    } else {
        names.iter().cloned().collect()
    };
    let mut described = Vec::new();
    for name in names {
        let description = match client.ask(Method::GET, &path(&name)).await? {
            Answer::Function(description) => description,
            other => return Err(unexpected(&other)),
        };
        let live = description.revisions.iter().rev().find(|revision| revision.weight > 0);
        let revision = live.or_else(|| description.revisions.last()).cloned();
        // One whose first deploy is not recorded yet has none.
        described.extend(revision.map(|revision| (description, revision)));
    }
    Ok(described)
}

/// Whether to write secrets is for the user to say.
fn with_values(described: &Described, args: &ExportArgs) -> Result {
    let secrets = described.iter().filter(|(_, revision)| !revision.spec.env.is_empty());
    let names: Vec<_> = secrets.map(|(one, _)| one.summary.name.to_string()).collect();
    let Some(first) = names.first().filter(|_| !args.with_env && !args.without_env) else {
        return Ok(());
    };
    let count = names.len();
    Err(Fail::config(format!(
        "{count} functions have variables in their environments, whose values are secrets, the \
         first is {first}"
    ))
    .hint(
        "--with-env writes them too, into files that only you may read; it needs an admin's token",
    )
    .hint("--without-env leaves them out: set them again after the deploy"))
}

async fn values(
    client: &Client,
    name: &FunctionName,
    number: u32,
) -> Result<BTreeMap<String, String>> {
    let place = format!("{}/revisions/{number}/environment", path(name));
    match client.ask(Method::GET, &place).await? {
        Answer::Environment(env) => Ok(env),
        // Not what it is: it may be a secret.
        _ => Err(Fail::internal("the API gave an answer to another question")),
    }
}

/// A folder of its own.
fn make(folder: &Path) -> Result {
    let is_taken = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    if is_taken || folder.is_file() {
        return Err(Fail::config(format!("{} is not empty", folder.display()))
            .hint("name a folder that does not exist yet"));
    }
    private_dir(folder).or_fail(Kind::Config, || format!("cannot make {}", folder.display()))
}

fn create(path: &Path) -> io::Result<File> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent)?;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn write(path: &Path, bytes: &[u8]) -> Result {
    let written = create(path).and_then(|mut file| file.write_all(bytes));
    written.or_fail(Kind::Unavailable, || format!("cannot write {}", path.display()))
}

/// Gets an artifact, which must be what it is called; its size.
async fn fetch(client: &Client, digest: Digest, folder: &Path) -> Result<u64> {
    let place = format!("/v1/artifacts/{digest}");
    let response = client.follow(Method::GET, &place, Bytes::new()).await?;
    let mut body = succeeded(response).await?.into_body();
    let path = artifact_path(folder, digest);
    let unwritten = || format!("cannot write {}", path.display());
    let mut file = create(&path).or_fail(Kind::Unavailable, unwritten)?;
    let (mut hasher, mut size) = (Sha256::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.or_fail(Kind::Unavailable, || format!("{digest} was cut"))?;
        if let Some(data) = frame.data_ref() {
            hasher.update(data);
            size += u64::try_from(data.len()).unwrap_or_default();
            file.write_all(data).or_fail(Kind::Unavailable, unwritten)?;
        }
    }
    if Digest(hasher.finalize().into()) != digest {
        return Err(Fail::unavailable(format!("{digest} did not arrive as it is: try again")));
    }
    Ok(size)
}
