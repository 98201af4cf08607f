//! What a request behind the door asks for, as the handlers of all dialects need it.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::header::HOST;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri};

use super::connections::Peer;
use super::credentials::from_query;
use super::pages::Query;

/// Names the customer whose consent the request is made with.
const CUSTOMER_HEADER: &str = "x-customer-id";

/// The client id that the door found.
#[derive(Clone)]
pub(super) struct ClientId(pub(super) String);

/// The request without its body, which no request behind the door has.
pub(super) struct Asked {
    pub(super) query: Query,
    /// Where header or query name one.
    pub(super) customer: Option<String>,
    pub(super) client: String,
    pub(super) uri: Uri,
    origin: String,
}

impl<S: Sync> FromRequestParts<S> for Asked {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let scheme = parts.extensions.get().map_or("http", |peer: &Peer| peer.scheme);
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
        let client = parts.extensions.get().map(|ClientId(client)| client.clone()).unwrap_or_default();
        Ok(Asked {
            query: Query::read(parts.uri.query()),
            customer: customer(&parts.headers, &parts.uri),
            client,
            uri: parts.uri.clone(),
            origin: format!("{scheme}://{host}"),
        })
    }
}

impl Asked {
    /// The full URL of this request.
    pub(super) fn url(&self) -> String {
        format!("{}{}", self.origin, self.uri)
    }

    /// The full URL of this request with another value of one parameter.
    pub(super) fn url_with(&self, name: &str, value: &str) -> String {
        format!("{}{}?{}", self.origin, self.uri.path(), self.query.with(name, value))
    }

    /// The customer, or else the client itself, whose accounts are then meant.
    pub(super) fn customer_or_client(&self) -> &str {
        self.customer.as_deref().unwrap_or(&self.client)
    }
}

/// The customer that a request is about, where header or query name one.
pub(super) fn customer(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    let header = headers.get(CUSTOMER_HEADER).and_then(|value| Some(value.to_str().ok()?.to_owned()));
    header.or_else(|| from_query(uri, "customer")).filter(|customer| !customer.is_empty())
}
