//! `store`: a control plane's records, moved.

use dirigent_control::store::{
    StoreError,
    etcd::EtcdConfig,
    migrate::{MigrateError, Moved, migrate},
};
use serde_json::json;

use crate::{
    args::{MigrateArgs, StoreCommand},
    fail::{Fail, Kind, Result},
    format,
    printer::Printer,
};

pub(super) fn store(command: StoreCommand, printer: Printer) -> Result {
    match command {
        StoreCommand::Migrate(args) => run(&args, printer),
    }
}

fn run(args: &MigrateArgs, printer: Printer) -> Result {
    let state = args.state.dir();
    let config = EtcdConfig { members: args.etcd.clone(), prefix: args.etcd_prefix.clone() };
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
    let prefix = if args.etcd_prefix == "/dirigent" {
        String::new()
    } else {
        format!(" --etcd-prefix {}", args.etcd_prefix)
    };
    printer.note(&"next, on the same directory, then the others:");
    printer.note(&format_args!(
        "  dirigent control-plane --state {} --etcd {etcd}{prefix}",
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
