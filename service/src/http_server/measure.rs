//! The duration of requests.

use std::time::Instant;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;

/// Histogram, seconds: time until an answer begins. Labels follow OpenTelemetry's semantic conventions for HTTP servers.
pub const DURATION: &str = "http_server_request_duration_seconds";

/// Records the [`DURATION`] of a request. For routes of known methods only: clients could invent methods, and so labels.
pub async fn measure(route: String, request: Request, next: Next) -> Response {
    let (begun, method) = (Instant::now(), request.method().to_string());
    let response = next.run(request).await;
    let labels = [
        ("http_request_method", method),
        ("http_route", route),
        (
            "http_response_status_code",
            response.status().as_u16().to_string(),
        ),
    ];
    metrics::histogram!(DURATION, &labels).record(begun.elapsed());
    response
}
