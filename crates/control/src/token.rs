//! The API's token: made at the first start, kept in a file that only its owner may read.

use std::{
    fmt, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use dirigent_core::Digest;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// A secret that opens the API. Never printed.
#[derive(Clone)]
pub struct Token {
    text: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file's content is none.
    #[error("{} does not hold a token of at least {MIN} characters: remove it to get a new one", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read or made.
    #[error("the token file {} cannot be used", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Shorter ones can be guessed.
const MIN: usize = 32;

impl Token {
    /// The token in this file, which is made if it does not exist.
    ///
    /// # Errors
    /// If the file cannot be used, or does not hold a token.
    pub fn load_or_make(path: &Path) -> Result<Self, TokenError> {
        Self::read(path)
            .or_else(|error| {
                if error.kind() == io::ErrorKind::NotFound { Self::make(path) } else { Err(error) }
            })
            .map_err(|source| TokenError::Io { path: path.to_owned(), source })
            .and_then(|token| {
                if token.text.len() < MIN {
                    return Err(TokenError::Unusable { path: path.to_owned() });
                }
                Ok(token)
            })
    }

    fn read(path: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(path)?.trim().to_owned();
        let mode = fs::metadata(path)?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!(path = %path.display(), "the token was readable by others; closed");
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        }
        Ok(Self { text })
    }

    fn make(path: &Path) -> io::Result<Self> {
        let text = secret()?;
        dirigent_service::state::atomic_write(path, text.as_bytes(), 0o600)?;
        Ok(Self { text })
    }

    /// What data planes know it by.
    pub(crate) fn hash(&self) -> Digest {
        hash(&self.text)
    }

    /// Whether this is the token; takes as long whether it is or not.
    #[must_use]
    pub fn is(&self, offered: &str) -> bool {
        self.text.as_bytes().ct_eq(offered.as_bytes()).into()
    }
}

/// 256 random bits, in hexadecimal digits.
pub(crate) fn secret() -> io::Result<String> {
    let mut bytes = [0; 32];
    crate::random(&mut bytes)?;
    Ok(hex(&bytes))
}

/// What is kept of a secret that need not be told again. One round of SHA-256 will do: a slow hash
/// is for passwords, which can be guessed; 256 random bits cannot.
pub(crate) fn digest(secret: &str) -> String {
    hash(secret).hex()
}

/// The same, as records have it.
pub(crate) fn hash(secret: &str) -> Digest {
    Digest(Sha256::digest(secret).into())
}

fn hex(bytes: &[u8]) -> String {
    let digit = |digit: u8| char::from_digit(digit.into(), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_only_its_owner_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        Token::load_or_make(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.len(), 64);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let again = Token::load_or_make(&path).unwrap();
        assert!(again.is(&text) && !again.is(&text[1..]) && !again.is(""));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(format!("{again:?}"), "Token(..)");
    }

    #[test]
    fn an_empty_token_file_opens_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "").unwrap();
        assert!(matches!(Token::load_or_make(&path), Err(TokenError::Unusable { .. })));
    }
}
