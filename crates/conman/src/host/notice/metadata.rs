//! What the metadata services of all providers have in common: HTTP on an address of this machine's own.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;

use super::SourceError;
use crate::node::{self, Address, Dialer};

/// How long a service may take that answers at once.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// One question to a metadata service.
pub(super) struct Question<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) headers: &'a [(&'static str, &'a str)],
    pub(super) body: String,
}

impl<'a> Question<'a> {
    pub(super) fn get(path: &'a str, headers: &'a [(&'static str, &'a str)]) -> Self {
        Self {
            method: Method::GET,
            path,
            headers,
            body: String::new(),
        }
    }

    /// Asks, and gives whatever status is answered.
    pub(super) async fn ask(
        self,
        address: &Address,
        patience: Duration,
    ) -> Result<Response<Bytes>, SourceError> {
        let request = self.request(address)?;
        match tokio::time::timeout(patience, node::ask(&Dialer::default(), address, request)).await
        {
            Ok(answer) => answer.map_err(|error| SourceError::Unreachable(format!("{error:#}"))),
            Err(_) => Err(SourceError::Unreachable("no answer in time".to_owned())),
        }
    }

    fn request(self, address: &Address) -> Result<Request<Full<Bytes>>, SourceError> {
        let foreign = |error: &dyn std::fmt::Display| SourceError::Foreign(error.to_string());
        let host = match address {
            Address::Tcp(place) | Address::Tls(place) => place.as_str(),
            Address::Unix(_) => "metadata",
        };
        let mut request = Request::builder()
            .method(self.method)
            .uri(self.path)
            .header(header::HOST, host)
            .body(Full::new(Bytes::from(self.body)))
            .map_err(|error| foreign(&error))?;
        for (name, value) in self.headers {
            // A token that a service gave may be anything.
            let value = HeaderValue::from_str(value).map_err(|error| foreign(&error))?;
            request
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
        Ok(request)
    }
}

/// The body of an answer that must be 200.
pub(super) fn ok(answer: &Response<Bytes>) -> Result<&str, SourceError> {
    match answer.status() {
        StatusCode::OK => std::str::from_utf8(answer.body())
            .map_err(|error| SourceError::Foreign(error.to_string())),
        status => Err(SourceError::Refused(status)),
    }
}

/// The same as JSON.
pub(super) fn json<T: serde::de::DeserializeOwned>(
    answer: &Response<Bytes>,
) -> Result<T, SourceError> {
    serde_json::from_str(ok(answer)?).map_err(|error| SourceError::Foreign(error.to_string()))
}
