//! How the bank says no, in each of its dialects.
//!
//! | | own | UK Open Banking 4.0 | FDX 6 |
//! |---|---|---|---|
//! | body | `{"error"}` | `{"Id", "Errors": [{"ErrorCode", "Message"}]}` | `{"code", "message"}` |
//! | consent expired | `consent_expired` | `U009`, an invalid consent status | `602`, customer not authorized |
//!
//! The codes are those of OBInternalStatusReason1Code (OpenBankingUK/External_Internal_CodeSets) and of the FDX
//! specification's section on errors, as banks publish them (docs.flinks.com/api/outbound/endpoints/fdx/fdx-errors.md);
//! where FDX has none, the HTTP status is the code. A consent that has expired is 403 in each of them, though FDX lists
//! 602 under 401: a client must not take it for a token that it could renew.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// The words in which a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Own,
    OpenBanking,
    Fdx,
}

/// Why the answer is no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    BadRequest(&'static str),
    Unauthorized(&'static str),
    ConsentExpired,
    NoAccount,
    RateLimited,
    Busy,
    Closing,
    Failed(StatusCode),
}

impl Dialect {
    /// By the path.
    pub(super) fn of(path: &str) -> Self {
        match path.split('/').nth(1) {
            Some("open-banking") => Dialect::OpenBanking,
            Some("fdx") => Dialect::Fdx,
            _ => Dialect::Own,
        }
    }

    pub(super) fn refuse(self, refusal: Refusal) -> Response {
        let message = refusal.message();
        let body = match self {
            Dialect::Own => json!({ "error": message }),
            Dialect::OpenBanking => json!({
                "Id": "sandbox", "Errors": [{ "ErrorCode": refusal.open_banking_code(), "Message": message }],
            }),
            Dialect::Fdx => json!({ "code": refusal.fdx_code(), "message": message }),
        };
        (refusal.status(), Json(body)).into_response()
    }
}

impl Refusal {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Refusal::BadRequest(_) => StatusCode::BAD_REQUEST,
            Refusal::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Refusal::ConsentExpired => StatusCode::FORBIDDEN,
            Refusal::NoAccount => StatusCode::NOT_FOUND,
            Refusal::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Busy | Refusal::Closing => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Failed(status) => status,
        }
    }

    fn message(self) -> &'static str {
        match self {
            Refusal::BadRequest(problem) | Refusal::Unauthorized(problem) => problem,
            Refusal::ConsentExpired => "consent_expired",
            Refusal::NoAccount => "there is no such account",
            Refusal::RateLimited => "too many requests: wait as long as Retry-After says",
            Refusal::Busy => "too many requests at the same time",
            Refusal::Closing => "the bank closes",
            Refusal::Failed(_) => "the bank fails on purpose",
        }
    }

    fn open_banking_code(self) -> &'static str {
        match self {
            Refusal::BadRequest(_) => "U002",
            Refusal::Unauthorized(_) => "U006",
            Refusal::ConsentExpired => "U009",
            Refusal::NoAccount => "U011",
            Refusal::RateLimited | Refusal::Busy | Refusal::Closing | Refusal::Failed(_) => "U000",
        }
    }

    fn fdx_code(self) -> &'static str {
        match self {
            Refusal::BadRequest(_) => "703",
            Refusal::Unauthorized(_) => "401",
            Refusal::ConsentExpired => "602",
            Refusal::NoAccount => "701",
            Refusal::RateLimited => "429",
            Refusal::Busy | Refusal::Closing => "501",
            Refusal::Failed(_) => "500",
        }
    }
}
