//! Which function an HTTP request names: by its Host, or by its path where the Host names none.
//!
//! ```text
//! Host: NAME                       Host: NAME.DOMAIN         Host: NAME.NAMESPACE.DOMAIN
//! Host: IP | localhost | gateway   Path: /fn/NAME/...        Path: /fn/NAMESPACE/NAME/...
//! ```
//!
//! Case, port and a trailing dot of the Host do not count. The longest domain that fits is taken.
//!
//! `/fn/a/b` is ambiguous without knowing which functions exist, so both readings are given: first
//! the function `a` of the default namespace with the path `/b`, then `a/b`. In this order a path
//! below a function never asks for names that nobody made; the price is that a function of the
//! default namespace hides the namespace of the same name on paths (by Host it is reached).

use std::{borrow::Cow, net::IpAddr};

use super::{DEFAULT_NAMESPACE, FunctionName};

/// The first segment of a path that names a function.
const PREFIX: &str = "/fn/";

/// The names by which a data plane is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostRules {
    /// Longest first, in lower case, without dots at the ends.
    domains: Vec<String>,
    gateways: Vec<String>,
}

/// What a request names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// A function.
    Function(Candidate),
    /// The first of these that exists.
    Either(Candidate, Candidate),
    /// No function.
    NoFunction {
        /// What was expected, for the answer's message.
        why: String,
    },
}

/// A function that a request may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The function.
    pub name: FunctionName,
    /// So many bytes of the path are not the function's, and go into `X-Forwarded-Prefix`. What
    /// remains is empty or starts with `/`.
    pub strip: usize,
}

impl HostRules {
    /// Functions are reached below `domains`; `gateways` are Hosts that name no function, so that
    /// the path does.
    #[must_use]
    pub fn new<T: AsRef<str>>(domains: &[T], gateways: &[T]) -> Self {
        let normal = |names: &[T]| -> Vec<String> {
            names
                .iter()
                .map(|name| name.as_ref().trim_matches('.').to_ascii_lowercase())
                .filter(|name| !name.is_empty())
                .collect()
        };
        let mut domains = normal(domains);
        domains.sort_by_key(|domain| std::cmp::Reverse(domain.len()));
        Self { domains, gateways: normal(gateways) }
    }

    /// The function that a request with this Host and path (a query may follow) names.
    #[must_use]
    pub fn resolve(&self, host: &str, path: &str) -> Route {
        let host = bare(host);
        if self.names_no_function(&host) {
            return by_path(path);
        }
        if let Some(name) = self.by_host(&host) {
            return Route::Function(Candidate { name, strip: 0 });
        }
        let forms = self.domains.first().map_or_else(String::new, |domain| {
            format!(", NAME.{domain} or NAME.NAMESPACE.{domain}")
        });
        Route::NoFunction {
            why: format!(
                "the Host `{}` names no function: send NAME{forms}",
                host.chars().take(255).collect::<String>()
            ),
        }
    }

    fn names_no_function(&self, host: &str) -> bool {
        let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        host.is_empty()
            || host == "localhost"
            || literal.unwrap_or(host).parse::<IpAddr>().is_ok()
            || self.gateways.iter().any(|gateway| gateway == host)
    }

    fn by_host(&self, host: &str) -> Option<FunctionName> {
        let below = self
            .domains
            .iter()
            .find_map(|domain| host.strip_suffix(domain.as_str())?.strip_suffix('.'));
        let (name, namespace) = match below {
            Some(below) => below.split_once('.').unwrap_or((below, DEFAULT_NAMESPACE)),
            None => (host, DEFAULT_NAMESPACE),
        };
        FunctionName::new(namespace, name).ok()
    }
}

/// A Host without port and trailing dot, in lower case.
fn bare(host: &str) -> Cow<'_, str> {
    let host = match host.rsplit_once(':') {
        Some((host, port))
            if port.bytes().all(|b| b.is_ascii_digit())
                && (!host.contains(':') || host.ends_with(']')) =>
        {
            host
        }
        Some(_) | None => host,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

fn by_path(path: &str) -> Route {
    let path = path.split_once('?').map_or(path, |(path, _query)| path);
    let nothing = || Route::NoFunction {
        why: "neither Host nor path names a function: send its name as Host, or use the path \
              /fn/NAME/... or /fn/NAMESPACE/NAME/..."
            .to_owned(),
    };
    let Some(rest) = path.strip_prefix(PREFIX) else { return nothing() };
    let mut segments = rest.split('/');
    let Some(first) = segments.next() else { return nothing() };
    let strip = PREFIX.len() + first.len();
    let Ok(name) = FunctionName::new(DEFAULT_NAMESPACE, first) else { return nothing() };
    let short = Candidate { name, strip };
    let long = segments.next().and_then(|second| {
        let name = FunctionName::new(first, second).ok()?;
        Some(Candidate { name, strip: strip + 1 + second.len() })
    });
    match long {
        Some(long) => Route::Either(short, long),
        None => Route::Function(short),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> HostRules {
        HostRules::new(&["Example.com.", "fn.example.com", "localhost"], &["gw.example.com"])
    }

    fn resolve(host: &str, path: &str) -> String {
        let show = |c: &Candidate| format!("{}-{}", c.name, c.strip);
        match rules().resolve(host, path) {
            Route::Function(one) => show(&one),
            Route::Either(first, second) => format!("{} or {}", show(&first), show(&second)),
            Route::NoFunction { .. } => "none".to_owned(),
        }
    }

    #[test]
    fn hosts_name_functions() {
        for (host, want) in [
            ("hello", "hello-0"),
            ("HELLO:8080", "hello-0"),
            ("hello.", "hello-0"),
            ("hello.example.com", "hello-0"),
            ("Hello.Example.COM.:80", "hello-0"),
            ("thumbs.media.example.com", "media/thumbs-0"),
            ("thumbs.fn.example.com", "thumbs-0"),
            ("thumbs.media.fn.example.com", "media/thumbs-0"),
            ("hello.localhost:8080", "hello-0"),
            ("hello.default.localhost", "hello-0"),
            ("example.com", "none"),
            ("a.b.c.example.com", "none"),
            ("hello.example.org", "none"),
            ("hello_x", "none"),
            ("-x.example.com", "none"),
            (".example.com", "none"),
            ("notexample.com", "none"),
            ("user@hello", "none"),
            ("hello:port", "none"),
        ] {
            assert_eq!(resolve(host, "/fn/other/x"), want, "{host}");
        }
    }

    #[test]
    fn paths_name_functions_only_where_the_host_names_none() {
        for host in
            ["127.0.0.1", "127.0.0.1:8080", "[::1]:8080", "[::1]", "localhost", "LocalHost:80", ""]
        {
            assert_eq!(resolve(host, "/fn/hello"), "hello-9", "{host}");
        }
        assert_eq!(resolve("gw.example.com:443", "/fn/hello"), "hello-9");
    }

    #[test]
    fn a_path_of_two_names_has_two_readings_the_short_one_first() {
        for (path, want) in [
            ("/fn/hello/", "hello-9"),
            ("/fn/hello?x=/y", "hello-9"),
            ("/fn/hello/a.html", "hello-9"),
            ("/fn/media/thumbs", "media-9 or media/thumbs-16"),
            ("/fn/media/thumbs/a/b", "media-9 or media/thumbs-16"),
            ("/fn/default/hello", "default-11 or hello-17"),
            ("/fn/", "none"),
            ("/fn", "none"),
            ("/fn//hello", "none"),
            ("/fn/Hello", "none"),
            ("/", "none"),
            ("", "none"),
            ("/x/fn/hello", "none"),
        ] {
            assert_eq!(resolve("localhost", path), want, "{path}");
        }
    }
}
