//! `/openapi.json`: the description of the API, made from its code.

use axum::Router;
use axum::http::StatusCode;
use axum::http::header;
use axum::routing::get;
use utoipa::openapi::{Info, OpenApi};

use super::answer::tag;
use super::app::App;

/// The route of the description.
pub(super) fn route(document: &OpenApi) -> Router<App> {
    let mut document = document.clone();
    document.info = Info::new("taskrunning", env!("CARGO_PKG_VERSION"));
    document.info.description =
        Some("What a task pipeline's tables say of running tasks.".to_owned());
    // It is made of texts only.
    let text = document.to_json().unwrap_or_default();
    let tag = tag(text.as_bytes());
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::ETAG, tag),
    ];
    Router::new().route(
        "/openapi.json",
        get(move || async move { (StatusCode::OK, headers, text) }),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::serve::routes;

    #[test]
    fn every_route_is_described_and_every_description_is_served() {
        let routes = routes();
        let served: BTreeSet<&String> = routes.paths.iter().collect();
        let described: BTreeSet<&String> = routes.document.paths.paths.keys().collect();
        assert_eq!(served, described);
    }
}
