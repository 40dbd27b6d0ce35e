//! Extractors whose refusals are API errors: axum's own answer with plain text.
//!
//! Invariant: a request that cannot be read is answered by an [`ApiError`] that says what to do.

use crate::http_server::ApiError;
use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

/// A JSON body.
pub struct JsonBody<T>(pub T);

/// Parameters in the path.
pub struct PathParam<T>(pub T);

/// Parameters in the query.
pub struct QueryParams<T>(pub T);

fn refusal(status: StatusCode, what: &str, why: String) -> ApiError {
    ApiError::new(status, what, why, "see the OpenAPI document of this role for the parameters and the body")
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Json(value) = Json::<T>::from_request(request, state)
            .await
            .map_err(|rejection| refusal(rejection.status(), "invalid request body", rejection.body_text()))?;
        Ok(Self(value))
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for PathParam<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(value) = Path::<T>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| refusal(rejection.status(), "invalid path", rejection.body_text()))?;
        Ok(Self(value))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for QueryParams<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Query(value) = Query::<T>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| refusal(rejection.status(), "invalid query", rejection.body_text()))?;
        Ok(Self(value))
    }
}
