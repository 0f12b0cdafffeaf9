//! `/openapi.json`: the API's OpenAPI document, generated from its code.

#[cfg(test)]
mod reference;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header;
use axum::routing::get;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Info, OpenApi};

use super::answer::tag;
use super::app::App;

/// Name of the token's security scheme.
const TOKEN: &str = "token";

/// The document's route; its security scheme is included if tokens are required.
pub(super) fn route(document: &OpenApi, has_tokens: bool) -> Router<App> {
    let mut document = document.clone();
    document.info = Info::new("taskrunning", env!("CARGO_PKG_VERSION"));
    document.info.description = Some(
        "Running tasks: progress, resources and metrics, as stored by the consumer.".to_owned(),
    );
    if has_tokens {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(TOKEN, SecurityScheme::Http(bearer));
        let needed = SecurityRequirement::new(TOKEN, Vec::<String>::new());
        document.security = Some(vec![needed]);
    }
    // Serializing text is infallible.
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

    use clap::Parser;
    use serde_json::Value;

    use crate::serve::options::ServeOptions;
    use crate::serve::routes::Routes;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        options: ServeOptions,
    }

    /// Includes the optional routes.
    pub(super) fn routes() -> Routes {
        crate::serve::routes(&Arguments::parse_from(["serve", "--linkis"]).options)
    }

    fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_to_a_schema_and_every_route_may_refuse() {
        let document = serde_json::to_value(routes().document).unwrap();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        for reference in found {
            let pointer = reference.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        for (path, route) in document["paths"].as_object().unwrap() {
            for status in ["200", "400", "401", "503"] {
                assert!(
                    !route["get"]["responses"][status].is_null(),
                    "{path}: no {status}"
                );
            }
        }
    }

    #[test]
    fn every_route_is_described_and_every_description_is_served() {
        let routes = routes();
        let served: BTreeSet<&String> = routes.paths.iter().collect();
        let described: BTreeSet<&String> = routes.document.paths.paths.keys().collect();
        assert_eq!(served, described);
    }
}
