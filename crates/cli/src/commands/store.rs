//! `store`: a control plane's records, moved.

use dirigent_control::store::{
    StoreError,
    migrate::{MigrateError, Moved, migrate},
};
use serde_json::json;

use crate::{
    args::{MigrateArgs, StoreCommand},
    fail::{Fail, Kind, Result},
    format,
    printer::Printer,
    roles::etcd,
};

pub(super) fn store(command: StoreCommand, printer: Printer) -> Result {
    match command {
        StoreCommand::Migrate(args) => run(&args, printer),
    }
}

fn run(args: &MigrateArgs, printer: Printer) -> Result {
    let state = args.state.dir();
    let config = etcd::configured(etcd::Said {
        members: &args.etcd,
        prefix: &args.etcd_prefix,
        ca: args.etcd_ca.as_deref(),
        cert: args.etcd_cert.as_deref(),
        key: args.etcd_key.as_deref(),
    })?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let bar = printer.bar(0);
    let mut progress = |done: usize, all: usize| {
        bar.set_length(u64::try_from(all).unwrap_or_default());
        bar.set_position(u64::try_from(done).unwrap_or_default());
    };
    let moved = migrate(&state, &config, runtime.handle(), &mut progress);
    bar.finish_and_clear();
    let moved = moved.map_err(|error| failed(error, args))?;
    told(&moved, args, printer)
}

fn told(moved: &Moved, args: &MigrateArgs, printer: Printer) -> Result {
    let Moved { cluster, epoch, functions, revisions, workers, data_planes, tokens, .. } = *moved;
    let Moved { artifacts, artifact_bytes, .. } = *moved;
    if printer.is_json() {
        return printer.json(&json!({
            "cluster": format!("{:032x}", cluster.0),
            "epoch": epoch,
            "functions": functions,
            "revisions": revisions,
            "workers": workers,
            "data_planes": data_planes,
            "tokens": tokens,
            "artifacts": artifacts,
            "artifact_bytes": artifact_bytes,
        }));
    }
    let (state, etcd) = (args.state.dir(), args.etcd.join(","));
    printer.line(&format_args!(
        "moved {functions} functions with {revisions} revisions, {workers} workers, {data_planes} \
         data planes and {tokens} tokens"
    ))?;
    printer.note(&format_args!(
        "{artifacts} artifacts ({}) are whole, and stay in {}",
        format::bytes(artifact_bytes),
        state.join("blobs").display()
    ));
    let files = [("ca", &args.etcd_ca), ("cert", &args.etcd_cert), ("key", &args.etcd_key)];
    let files = files
        .into_iter()
        .filter_map(|(name, path)| Some((name, path.as_ref()?.display().to_string())));
    let prefix = Some(("prefix", args.etcd_prefix.clone()));
    let more = files.chain(prefix.filter(|(_, prefix)| prefix != "/dirigent"));
    let more: Vec<String> = more.map(|(name, value)| format!(" --etcd-{name} {value}")).collect();
    let more = more.concat();
    printer.note(&"next, on the same directory, then the others:");
    printer.note(&format_args!(
        "  dirigent control-plane --state {} --etcd {etcd}{more}",
        state.display()
    ));
    Ok(())
}

fn failed(error: MigrateError, args: &MigrateArgs) -> Fail {
    let state = args.state.dir();
    let (kind, hint) = match &error {
        MigrateError::NoStore { .. } => {
            (Kind::Config, "name the directory of the control plane with --state".to_owned())
        }
        MigrateError::Lock(_) => {
            (Kind::User, "stop the control plane: calls to what runs go on".to_owned())
        }
        MigrateError::Artifacts { .. } => (
            Kind::Unavailable,
            format!("put it back into {}, or remove the functions", state.join("blobs").display()),
        ),
        MigrateError::Store(StoreError::Moved { .. }) => {
            (Kind::User, "it is done already".to_owned())
        }
        MigrateError::Store(StoreError::NotEmpty { .. } | StoreError::Moving { .. }) => {
            (Kind::User, "nothing was changed".to_owned())
        }
        MigrateError::Store(_) => (
            Kind::Unavailable,
            "the old store is as it was: try again, what is there is written over".to_owned(),
        ),
    };
    Fail::new(kind, anyhow::Error::from(error).context("the store is not moved")).hint(hint)
}
