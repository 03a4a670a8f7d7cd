//! `cluster` and `join`: who belongs to a cluster of machines.

use std::path::Path;

use dirigent_control::membership::{self, MembershipError};
use dirigent_core::Role;
use dirigent_service::{
    Clock,
    state::{atomic_write, private_dir},
    tls::{Certificate, Fingerprint, Trust, request},
};
use http::Method;
use serde::Deserialize;
use serde_json::json;

use crate::{
    args::{ApiArgs, ClusterCommand, InitArgs, JoinArgs, JoinTokenArgs, RemoveMemberArgs},
    client::{Client, Place},
    fail::{Fail, Kind, OrFail as _, Result},
    format::wall,
    printer::Printer,
    roles::own_name,
};

pub(super) fn cluster(command: ClusterCommand, printer: Printer) -> Result {
    match command {
        ClusterCommand::Init(args) => init(&args, printer),
        ClusterCommand::Token(args) => super::wait(token(&args, printer)),
        ClusterCommand::Members(args) => super::wait(members(&args, printer)),
        ClusterCommand::Remove(args) => super::wait(remove(&args, printer)),
    }
}

/// At which a server is met from its own machine, and by the machine's name.
fn hosts(named: &[String]) -> Vec<String> {
    let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let usual = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut all: Vec<String> = usual.into_iter().chain([machine]).collect();
    all.extend(named.iter().cloned());
    all
}

fn init(args: &InitArgs, printer: Printer) -> Result {
    let dir = args.state.dir();
    let name = args.name.clone().unwrap_or_else(|| own_name(&dir));
    let hosts = hosts(&args.hosts);
    let made = membership::init(&dir, &name, &hosts, membership::LIFE);
    let fingerprint = made.map_err(|error| {
        let kind = match &error {
            MembershipError::Exists { .. } => Kind::User,
            MembershipError::Member(_) | MembershipError::Certificate(_) => Kind::Config,
            _ => Kind::Unavailable,
        };
        Fail::new(kind, anyhow::Error::from(error).context("no cluster is made"))
    })?;
    if printer.is_json() {
        let ca = membership::authority(&dir);
        return printer
            .json(&json!({ "name": name, "fingerprint": fingerprint.to_string(), "ca": ca }));
    }
    let dir = dir.display();
    for line in [
        format!("made a cluster in {dir}: this is the control plane {name}"),
        format!("its authority's key is {dir}/tls/ca.key: whoever has it can make members, keep a copy safe"),
        "next:".to_owned(),
        format!("  dirigent control-plane --state {dir} --api ADDR:9091 --peers ADDR:9092"),
        "  dirigent cluster token --role worker     (or data-plane, control-plane), and on the other machine"
            .to_owned(),
        "  dirigent join TOKEN --server ADDR:9091".to_owned(),
        "  dirigent worker --control ADDR:9092".to_owned(),
    ] {
        printer.note(&line);
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
struct Made {
    token: String,
}

async fn token(args: &JoinTokenArgs, printer: Printer) -> Result {
    let role = Role::from(args.role);
    let ttl = humantime::format_duration(args.ttl).to_string();
    let body = json!({ "role": role.word(), "ttl": ttl, "name": args.name, "many": args.many });
    let Made { token } =
        args.api.client()?.call(Method::POST, "/v1/join-tokens", Some(&body)).await?;
    if printer.is_json() {
        return printer.json(&json!({ "token": token, "role": role.word(), "ttl": ttl }));
    }
    printer.line(&token)?;
    let often = if args.many { "any number of times" } else { "once" };
    printer.note(&format_args!("good for {ttl}, {often}; on the new machine:"));
    printer.note(&format_args!(
        "  dirigent join TOKEN --server ADDR:9091 && dirigent {role} --control ADDR:9092"
    ));
    Ok(())
}

#[derive(Debug, Deserialize)]
struct Members {
    members: Vec<membership::Listed>,
}

async fn members(args: &ApiArgs, printer: Printer) -> Result {
    let Members { members } = args.client()?.call(Method::GET, "/v1/members", None::<&()>).await?;
    if printer.is_json() {
        return members.iter().try_for_each(|member| printer.json(member));
    }
    let rows = members
        .into_iter()
        .map(|member| vec![member.role.to_string(), member.name, wall(member.until_ms)]);
    printer.table(&["ROLE", "NAME", "VALID UNTIL"], rows.collect())
}

async fn remove(args: &RemoveMemberArgs, printer: Printer) -> Result {
    let (role, name) = (Role::from(args.role), &args.name);
    let path = format!("/v1/members/{role}/{}", super::segment(name));
    let gone: serde_json::Value =
        args.api.client()?.call(Method::DELETE, &path, None::<&()>).await?;
    if printer.is_json() {
        return printer.json(&gone);
    }
    printer.note(&format_args!("removed {role} {name}: its certificates are refused from now on"));
    Ok(())
}

/// A token as it is given to people: `ROLE.FINGERPRINT.SECRET`.
fn parts(token: &str) -> Result<(Role, Fingerprint, &str)> {
    let bad = || {
        Fail::config("this is not a join token")
            .hint("`dirigent cluster token --role worker` prints one: copy all of it")
    };
    let mut parts = token.split('.');
    let (Some(role), Some(fingerprint), Some(secret), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(bad());
    };
    let role = role.parse().map_err(|_no_role| bad())?;
    let fingerprint = fingerprint.parse().map_err(|_no_fingerprint| bad())?;
    if secret.is_empty() { Err(bad()) } else { Ok((role, fingerprint, secret)) }
}

#[derive(Debug, Deserialize)]
struct Joined {
    certificate: String,
    authority: String,
}

pub(super) async fn join(args: &JoinArgs, printer: Printer) -> Result {
    let (role, fingerprint, secret) = parts(&args.token)?;
    let dir = args.state.dir();
    let own = membership::own(&dir, role);
    let name = args.name.clone().unwrap_or_else(|| own_name(&dir));
    let (key, request) = request().or_fail(Kind::Internal, || "no key can be made")?;
    let hosts = if role == Role::ControlPlane { hosts(&args.hosts) } else { Vec::new() };
    // The other side shows that it has the authority of the token before it is told the secret.
    let client = Client::new(
        Place::parse(&args.server)?.encrypted(),
        Some(Trust::Pinned(fingerprint)),
        None,
    );
    let body = json!({ "secret": secret, "name": name, "hosts": hosts, "request": request });
    let Joined { certificate, authority } =
        client.call(Method::POST, "/v1/join", Some(&body)).await?;
    if Fingerprint::of_pem(&authority).ok() != Some(fingerprint) {
        return Err(Fail::internal("the control plane sent another authority than it showed"));
    }
    let read = Certificate::of_pem(&certificate)
        .or_fail(Kind::Internal, || "the control plane sent no certificate")?;
    read.valid_at(Clock::wall())
        .or_fail(Kind::Unavailable, || "the clocks of this host and of the control plane differ")?;
    keep(&dir, &own, &authority, &(certificate + &key))
        .or_fail(Kind::Unavailable, || "the certificate cannot be kept")?;
    if printer.is_json() {
        return printer.json(&json!({ "role": role.word(), "name": name, "certificate": own }));
    }
    printer.note(&format_args!("joined as {role} {name}: {}", own.display()));
    printer.note(&format_args!("next: dirigent {role} --control ADDR:9092"));
    Ok(())
}

fn keep(dir: &Path, own: &Path, authority: &str, text: &str) -> std::io::Result<()> {
    private_dir(&membership::folder(dir))?;
    atomic_write(&membership::authority(dir), authority.as_bytes(), 0o644)?;
    atomic_write(own, text.as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_token_has_three_parts() {
        let fingerprint = "ab".repeat(32);
        let token = format!("data-plane.{fingerprint}.s3cret");
        let (role, read, secret) = parts(&token).unwrap();
        assert_eq!(
            (role, read.to_string(), secret),
            (Role::DataPlane, fingerprint.clone(), "s3cret")
        );
        for bad in [
            String::new(),
            "worker".to_owned(),
            format!("king.{fingerprint}.s"),
            format!("worker.{}.s", &fingerprint[1..]),
            format!("worker.{fingerprint}."),
            format!("{token}.x"),
        ] {
            assert_eq!(parts(&bad).unwrap_err().kind(), Kind::Config, "{bad}");
        }
    }
}
