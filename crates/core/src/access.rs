//! Tokens of the API: who may do what. Of a token only its hash is known here.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Digest, member};

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// To look at everything.
    View,
    /// To call functions, and nothing else: such a token is given away with a program.
    Invoke,
    /// To deploy, roll back and remove functions, to call them and to look at everything.
    Deploy,
    /// Everything: also tokens and members.
    Admin,
}

impl Access {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::View, Self::Invoke, Self::Deploy, Self::Admin];

    /// As on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Invoke => "invoke",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        }
    }

    /// Whether it includes another one.
    #[must_use]
    pub const fn includes(self, other: Self) -> bool {
        match self {
            Self::Admin => true,
            Self::Deploy => !matches!(other, Self::Admin),
            Self::Invoke => matches!(other, Self::Invoke),
            Self::View => matches!(other, Self::View),
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The text is no access.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a role of a token: use admin, deploy, invoke or view")]
pub struct AccessError {
    text: String,
}

impl FromStr for Access {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, AccessError> {
        let found = Self::ALL.into_iter().find(|access| access.word() == text);
        found.ok_or_else(|| AccessError { text: text.to_owned() })
    }
}

/// A token of the API, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiToken {
    /// By which people know it.
    pub name: Arc<str>,
    /// What it allows.
    pub access: Access,
    /// The SHA-256 of its secret.
    pub hash: Digest,
    /// Milliseconds since 1970.
    pub made_ms: u64,
    /// From then on it is worth nothing.
    pub expires_ms: Option<u64>,
}

impl ApiToken {
    /// Whether people may know a token by this name.
    #[must_use]
    pub fn is_name(text: &str) -> bool {
        member::is_name(text)
    }

    /// Whether it is worth anything at this time.
    #[must_use]
    pub fn is_good(&self, now_ms: u64) -> bool {
        self.expires_ms.is_none_or(|at| now_ms < at)
    }
}

/// A token as data planes see it: enough to judge who calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// The SHA-256 of its secret.
    pub hash: Digest,
    /// What it allows.
    pub access: Access,
    /// From then on it is worth nothing: milliseconds since 1970, by the clock of who judges, as
    /// with certificates.
    pub expires_ms: Option<u64>,
}

impl TokenView {
    /// Whether it is worth anything at this time.
    #[must_use]
    pub fn is_good(&self, now_ms: u64) -> bool {
        self.expires_ms.is_none_or(|at| now_ms < at)
    }
}

impl From<&ApiToken> for TokenView {
    fn from(token: &ApiToken) -> Self {
        let ApiToken { access, hash, expires_ms, name: _, made_ms: _ } = *token;
        Self { hash, access, expires_ms }
    }
}

/// Tokens at most.
pub const MAX_TOKENS: usize = 1000;

/// All tokens: one record, replaced whole. In the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiTokens(Vec<ApiToken>);

impl ApiTokens {
    /// All.
    #[must_use]
    pub fn all(&self) -> &[ApiToken] {
        &self.0
    }

    /// The one with this hash, if it is worth anything. Who can see how long the comparison takes
    /// learns of hashes, not of secrets.
    #[must_use]
    pub fn with_hash(&self, hash: Digest, now_ms: u64) -> Option<&ApiToken> {
        self.0.iter().find(|token| token.hash == hash && token.is_good(now_ms))
    }

    /// The one of this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&ApiToken> {
        self.0.iter().find(|token| &*token.name == name)
    }

    /// These and one more, without those that are worth nothing any more.
    #[must_use]
    pub fn with(&self, token: ApiToken, now_ms: u64) -> Self {
        let mut tokens: Vec<_> =
            self.0.iter().filter(|token| token.is_good(now_ms)).cloned().collect();
        let at = tokens.partition_point(|other| other.name < token.name);
        tokens.insert(at, token);
        Self(tokens)
    }

    /// These without the one of this name.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        Self(self.0.iter().filter(|token| &*token.name != name).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(name: &str, expires_ms: Option<u64>) -> ApiToken {
        let hash = Digest([u8::try_from(name.len()).unwrap(); 32]);
        ApiToken { name: name.into(), access: Access::View, hash, made_ms: 0, expires_ms }
    }

    #[test]
    fn what_includes_what() {
        use Access::{Admin, Deploy, Invoke, View};
        let includes = |access: Access| {
            Access::ALL.into_iter().filter(move |other| access.includes(*other)).collect::<Vec<_>>()
        };
        assert_eq!(includes(View), [View]);
        assert_eq!(includes(Invoke), [Invoke]);
        assert_eq!(includes(Deploy), [View, Invoke, Deploy]);
        assert_eq!(includes(Admin), [View, Invoke, Deploy, Admin]);
        for access in Access::ALL {
            assert_eq!(access.word().parse(), Ok(access));
        }
        assert!("root".parse::<Access>().is_err());
    }

    #[test]
    fn a_token_is_worth_something_until_it_expires_and_then_goes() {
        let all = ApiTokens::default().with(token("b", Some(10)), 0).with(token("aa", None), 0);
        let names = |all: &ApiTokens| all.0.iter().map(|t| t.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&all), ["aa", "b"]);
        let hash = Digest([1; 32]);
        assert_eq!(all.with_hash(hash, 9).map(|token| &*token.name), Some("b"));
        assert_eq!(all.with_hash(hash, 10), None);
        assert_eq!(names(&all.with(token("ccc", None), 10)), ["aa", "ccc"]);
        assert_eq!(names(&all.without("aa")), ["b"]);
        assert!(all.named("aa").is_some() && all.named("x").is_none());
    }
}
