//! What is asked and what is answered, as integrations see them.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderName, HeaderValue};

/// What a request is sent with unless it names another.
const USER_AGENT: &str = concat!("weir/", env!("CARGO_PKG_VERSION"));

/// A request in the making.
#[derive(Clone)]
pub struct Request {
    method: String,
    url: String,
    headers: Vec<(String, String)>,
    pub(super) body: Bytes,
}

impl Request {
    /// Any method, such as `GET`, to a full URL.
    pub fn new(method: impl Into<String>, url: impl Into<String>) -> Self {
        Request { method: method.into(), url: url.into(), headers: Vec::new(), body: Bytes::new() }
    }

    /// A `GET`.
    pub fn get(url: impl Into<String>) -> Self {
        Self::new("GET", url)
    }

    /// A `POST`, without a body yet.
    pub fn post(url: impl Into<String>) -> Self {
        Self::new("POST", url)
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// With one more parameter in the URL's query.
    #[must_use]
    pub fn query(mut self, name: &str, value: &str) -> Self {
        // What is no URL is refused when the request is made.
        if let Ok(mut url) = url::Url::parse(&self.url) {
            url.query_pairs_mut().append_pair(name, value);
            self.url = url.into();
        }
        self
    }

    /// With this body.
    #[must_use]
    pub fn body(self, content_type: &str, body: impl Into<Bytes>) -> Self {
        let mut request = self.header("content-type", content_type);
        request.body = body.into();
        request
    }

    /// Whether it can be made; the error says what is wrong.
    pub(in crate::integration) fn check(&self) -> Result<(), String> {
        self.build().map(drop)
    }

    pub(super) fn target(&self) -> String {
        let origin = url::Url::parse(&self.url).map(|url| url.origin().ascii_serialization());
        let method: String = self.method.chars().take(16).collect();
        format!("{method} {}", origin.as_deref().unwrap_or("(not a URL)"))
    }

    pub(super) fn build(&self) -> Result<hyper::Request<Full<Bytes>>, String> {
        let method = self.method.parse().map_err(|_| "the method is not valid: use one such as GET or POST")?;
        let url = url::Url::parse(&self.url).map_err(|error| format!("the URL is not valid: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("the URL's scheme is {:?}: use http or https", url.scheme()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("the URL holds a credential: send it in a header".into());
        }
        let mut request = hyper::Request::new(Full::new(self.body.clone()));
        let uri = url.as_str().parse().map_err(|error| format!("the URL is not valid: {error}"))?;
        (*request.method_mut(), *request.uri_mut()) = (method, uri);
        let headers = request.headers_mut();
        for (name, value) in &self.headers {
            let value = HeaderValue::from_str(value);
            let name = HeaderName::try_from(name.as_str()).map_err(|_| format!("header name {name:?} is not valid"))?;
            let mut value = value.map_err(|_| format!("the value of header {name} is not valid"))?;
            value.set_sensitive(name == header::AUTHORIZATION);
            headers.append(name, value);
        }
        headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static(USER_AGENT));
        headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        Ok(request)
    }
}

/// A whole answer, whatever its status.
#[derive(Clone)]
pub struct Answer {
    /// The HTTP status code.
    pub status: u16,
    /// In the order received; names in lower case.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// Whether the status is 200 to 299.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The first header of this name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}
