//! `token`: who may use the API, and for what.

use dirigent_core::Access;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    args::{ApiArgs, CreateTokenArgs, RevokeTokenArgs, TokenCommand},
    fail::Result,
    format::wall,
    printer::Printer,
};

pub(super) async fn token(command: TokenCommand, printer: Printer) -> Result {
    match command {
        TokenCommand::Create(args) => create(&args, printer).await,
        TokenCommand::List(args) => list(&args, printer).await,
        TokenCommand::Revoke(args) => revoke(&args, printer).await,
    }
}

#[derive(Debug, Deserialize, Serialize)]
struct Made {
    name: String,
    role: Access,
    token: String,
    expires_ms: Option<u64>,
}

async fn create(args: &CreateTokenArgs, printer: Printer) -> Result {
    let expires = args.expires.map(|after| humantime::format_duration(after).to_string());
    let role = Access::from(args.role);
    let body = json!({ "role": role, "name": args.name, "expires": expires });
    let made: Made = args.api.client()?.call(Method::POST, "/v1/tokens", Some(&body)).await?;
    if printer.is_json() {
        return printer.json(&made);
    }
    printer.line(&made.token)?;
    printer.note(&format_args!(
        "token {} of the role {role}; it is not shown again, and kept as a hash only",
        made.name
    ));
    Ok(())
}

#[derive(Debug, Deserialize)]
struct Tokens {
    tokens: Vec<Shown>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Shown {
    name: String,
    role: Access,
    made_ms: u64,
    expires_ms: Option<u64>,
}

async fn list(args: &ApiArgs, printer: Printer) -> Result {
    let Tokens { tokens } = args.client()?.call(Method::GET, "/v1/tokens", None::<&()>).await?;
    if printer.is_json() {
        return tokens.iter().try_for_each(|token| printer.json(token));
    }
    let rows = tokens.into_iter().map(|Shown { name, role, made_ms, expires_ms }| {
        let expires = expires_ms.map_or_else(|| "-".to_owned(), wall);
        vec![name, role.to_string(), wall(made_ms), expires]
    });
    printer.table(&["NAME", "ROLE", "MADE", "EXPIRES"], rows.collect())
}

async fn revoke(args: &RevokeTokenArgs, printer: Printer) -> Result {
    let path = format!("/v1/tokens/{}", super::segment(&args.name));
    let gone: Value = args.api.client()?.call(Method::DELETE, &path, None::<&()>).await?;
    if printer.is_json() {
        return printer.json(&gone);
    }
    printer.note(&format_args!("revoked {}", args.name));
    Ok(())
}
