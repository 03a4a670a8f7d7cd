//! Who may call functions that ask for a token. What is known is what the control plane told last;
//! it is told on the same stream before the first function that asks for one.
//!
//! Refused without a word from the control plane: a data plane that knows no tokens lets nobody in.
//! One that is cut off goes on with those that it knows, as it goes on with everything else.

use arc_swap::ArcSwapOption;
use dirigent_core::{Access, Digest, TokenView};
use http::{HeaderMap, HeaderValue, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::errors::{Code, Failure};

/// Longer ones are none of ours, and are not hashed: ours have 64 digits.
const LONGEST: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Tokens(ArcSwapOption<Vec<TokenView>>);

impl Tokens {
    /// From now on these count, and no others.
    pub(crate) fn learn(&self, tokens: Vec<TokenView>) {
        self.0.store(Some(tokens.into()));
    }

    /// Whether somebody who sends these headers may call.
    pub(crate) fn admit(&self, headers: &HeaderMap, now_ms: u64) -> Result<(), Failure> {
        let offered = offered(headers).map_err(unauthorized)?;
        let known = self.0.load();
        let Some(known) = &*known else {
            return Err(Failure::new(
                Code::NoControlPlane,
                "this function is called with a token, and no control plane has said yet which count",
            ));
        };
        let hash = Digest(Sha256::digest(offered).into());
        match access(known, hash, now_ms) {
            Some(access) if access.includes(Access::Invoke) => Ok(()),
            Some(access) => Err(Failure::new(
                Code::Forbidden,
                format!(
                    "this function is called with a token of the role `invoke`, `deploy` or \
                     `admin`; this one has `{access}`"
                ),
            )),
            None => Err(unauthorized(
                "the token does not count: it is wrong, was revoked or has expired",
            )),
        }
    }
}

/// What the token of this hash allows. All are compared, each in the same time: how long it takes
/// tells how many there are and nothing else.
fn access(known: &[TokenView], hash: Digest, now_ms: u64) -> Option<Access> {
    known.iter().fold(None, |found, token| {
        let same = bool::from(token.hash.0.ct_eq(&hash.0));
        if same && token.is_good(now_ms) { Some(token.access) } else { found }
    })
}

/// The token in these headers.
fn offered(headers: &HeaderMap) -> Result<&[u8], &'static str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter().map(HeaderValue::as_bytes);
    let (first, second) = (values.next(), values.next());
    let Some(value) = first else {
        return Err("this function is called with a token: send `Authorization: Bearer TOKEN`; \
                    `dirigent token create --role invoke` makes one");
    };
    if second.is_some() {
        return Err("Authorization is given twice");
    }
    let (scheme, token) = value.split_at_checked(BEARER.len()).unwrap_or((value, b""));
    if !scheme.eq_ignore_ascii_case(BEARER) {
        return Err("this function is called with `Authorization: Bearer TOKEN`, not otherwise");
    }
    match token.trim_ascii() {
        token if (1..=LONGEST).contains(&token.len()) => Ok(token),
        _ => Err("what is in `Authorization` is not a token of the API"),
    }
}

const BEARER: &[u8] = b"Bearer ";

fn unauthorized(why: &'static str) -> Failure {
    Failure::new(Code::Unauthorized, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let value = |text: &&str| HeaderValue::from_str(text).unwrap();
        values.iter().map(|text| (header::AUTHORIZATION, value(text))).collect()
    }

    fn view(secret: &str, access: Access, expires_ms: Option<u64>) -> TokenView {
        TokenView { hash: Digest(Sha256::digest(secret).into()), access, expires_ms }
    }

    /// How somebody is answered who sends these.
    fn said(tokens: &Tokens, values: &[&str]) -> Result<(), Code> {
        tokens.admit(&headers(values), 1000).map_err(|failure| failure.code)
    }

    #[test]
    fn only_a_token_that_counts_and_may_call_lets_in() {
        let tokens = Tokens::default();
        tokens.learn(vec![
            view("old", Access::Admin, Some(1000)),
            view("call", Access::Invoke, Some(1001)),
            view("look", Access::View, None),
            view("deploy", Access::Deploy, None),
            view("all", Access::Admin, None),
        ]);
        for good in ["Bearer call", "bearer  call ", "BEARER deploy", "Bearer all"] {
            assert_eq!(said(&tokens, &[good]), Ok(()), "{good}");
        }
        assert_eq!(said(&tokens, &["Bearer look"]), Err(Code::Forbidden));
        let long = format!("Bearer {}", "x".repeat(LONGEST + 1));
        for bad in
            ["Bearer old", "Bearer nobody", "Bearer ", "Bearer", "Basic call", "call", "", &long]
        {
            assert_eq!(said(&tokens, &[bad]), Err(Code::Unauthorized), "{bad}");
        }
        assert_eq!(said(&tokens, &[]), Err(Code::Unauthorized));
        assert_eq!(said(&tokens, &["Bearer call", "Bearer call"]), Err(Code::Unauthorized));
        tokens.learn(Vec::new());
        assert_eq!(said(&tokens, &["Bearer call"]), Err(Code::Unauthorized), "revoked");
    }

    #[test]
    fn who_knows_no_tokens_lets_nobody_in() {
        let tokens = Tokens::default();
        assert_eq!(said(&tokens, &["Bearer call"]), Err(Code::NoControlPlane));
        assert_eq!(said(&tokens, &[]), Err(Code::Unauthorized));
    }
}
