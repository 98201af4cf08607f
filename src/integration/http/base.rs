//! The base URL: what the paths of the steps are added to, and what a link of the bank must stay below.
//!
//! Credentials go only where the configuration says. A link to a next page is followed when it has the base URL's
//! scheme, host and port and lies below its path; anything else is an error that says what to change.

use url::Url;

use crate::integration::Invalid;

/// A checked base URL.
pub(super) struct Base {
    url: Url,
    /// Without a slash at the end.
    text: String,
}

impl Base {
    /// Checks `base_url`.
    pub(super) fn parse(base_url: &str) -> Result<Self, Invalid> {
        let example = "use one such as \"https://api.bank.example/v1\"";
        let refused = |problem: String| Err(Invalid::new("base_url", problem));
        // Before all else: what holds a credential is not shown.
        if holds_credential(base_url) {
            return refused("it holds a credential: use token = { env = \"NAME\" }, or auth".into());
        }
        let problem = match Url::parse(base_url) {
            Err(error) => error.to_string(),
            Ok(url) if !matches!(url.scheme(), "http" | "https") => "its scheme is neither http nor https".into(),
            // Not shown either: keys are sent in queries.
            Ok(url) if url.query().is_some() || url.fragment().is_some() => {
                return refused(format!("it has a query or a fragment: {example}, and a step's query"));
            }
            Ok(url) => {
                let text = url.as_str().trim_end_matches('/').to_owned();
                return Ok(Base { url, text });
            }
        };
        // Of one that cannot be read, nothing after a mark of a query can be told from a secret.
        let shown = base_url.split(['?', '#']).next().unwrap_or_default();
        refused(format!("{shown:?} is not valid: {problem}; {example}"))
    }

    /// The URL without a slash at the end.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Where `link`, in the answer to a request to `here`, leads.
    pub(super) fn follow(&self, here: &str, link: &str) -> Result<String, String> {
        let here = Url::parse(here).map_err(|error| format!("the request's own URL is not valid: {error}"))?;
        let mut url = here.join(link).map_err(|error| format!("the next page's link is not valid: {error}"))?;
        url.set_fragment(None);
        if url.origin() != self.url.origin() || !url.username().is_empty() || url.password().is_some() {
            return Err("the next page's link leads to another host: credentials stay with base_url's".into());
        }
        let below = self.url.path().trim_end_matches('/');
        let is_below = url.path().strip_prefix(below).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        match is_below {
            true => Ok(url.into()),
            false => Err(format!("the next page's link leads out of {below}/: use a shorter base_url if it may")),
        }
    }
}

/// Whether a URL has user information, or may have: one that cannot be read is looked at as a text.
pub(super) fn holds_credential(text: &str) -> bool {
    let read = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    match read {
        Some(url) => !url.username().is_empty() || url.password().is_some(),
        None => text.contains('@'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_with_a_credential_is_refused_and_never_shown() {
        for text in [
            "http://user:PW-SECRET@host/",
            "http://user:PW-SECRET@host/?k=Q-SECRET",
            "https://PW-SECRET@host",
            "user:PW-SECRET@host/v1",
            "https://user:PW-SECRET@[host/",
            "ftp://user:PW-SECRET@host/",
            "https://host/?key=Q-SECRET",
            "https://host:x/?key=Q-SECRET",
        ] {
            let error = Base::parse(text).err().expect(text).to_string();
            assert!(error.starts_with("base_url: ") && !error.contains("SECRET"), "{text}: {error}");
        }
        let error = Base::parse("ftp://bank.example/v1").err().expect("no http").to_string();
        assert!(error.contains("\"ftp://bank.example/v1\" is not valid"), "{error}");
    }

    #[test]
    fn links_are_followed_below_the_base_url_and_nowhere_else() {
        let base = Base::parse("https://bank.example/v1/").expect("valid");
        let here = "https://bank.example/v1/accounts/1/transactions?page=1";
        for (link, expected) in [
            ("?page=2", "https://bank.example/v1/accounts/1/transactions?page=2"),
            ("/v1/next#part", "https://bank.example/v1/next"),
            ("https://bank.example:443/v1/x", "https://bank.example/v1/x"),
            ("https://bank.example/v1", "https://bank.example/v1"),
        ] {
            assert_eq!(base.follow(here, link).as_deref(), Ok(expected));
        }
        for (link, says) in [
            ("https://evil.example/v1/x", "another host"),
            ("//evil.example/v1/x", "another host"),
            ("http://bank.example/v1/x", "another host"),
            ("https://bank.example:8443/v1/x", "another host"),
            ("https://user@bank.example/v1/x", "another host"),
            ("https://bank.example@evil.example/v1/x", "another host"),
            ("/v2/x", "out of /v1/"),
            ("/v11", "out of /v1/"),
            ("../../../x", "out of /v1/"),
            ("/v1/%2e%2e/x", "out of /v1/"),
            ("https://[/", "not valid"),
        ] {
            let error = base.follow(here, link).expect_err(link);
            assert!(error.contains(says), "{link}: {error}");
        }
    }
}
