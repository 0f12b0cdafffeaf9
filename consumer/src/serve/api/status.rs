//! `/api/v1/status`: stored offsets and expiry.

use axum::extract::State;
use futures_util::FutureExt;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

use crate::query::Watermark;
use crate::serve::answer::Answer;
use crate::serve::app::App;
use crate::serve::caller::Caller;
use crate::serve::parameters::Parameters;
use crate::serve::problem::Problem;
use crate::serve::routes::Routes;

#[derive(OpenApi)]
#[openapi(paths(status))]
struct Doc;

pub(super) fn routes() -> Routes {
    Routes::of::<Doc>().get::<__path_status, _>(status)
}

/// State of the tables.
#[derive(Serialize, ToSchema)]
struct Status {
    /// Version of the program.
    version: &'static str,
    watermark: Watermark,
    /// `consumer expire` removed the reports before this time; null: nothing was removed.
    #[schema(value_type = Option<String>, format = DateTime)]
    expired_before: Option<Timestamp>,
}

/// State of the tables: stored offsets, and the time before which history was removed.
#[utoipa::path(
    get,
    path = "/api/v1/status",
    tag = "status",
    responses(
        (status = OK, body = Status),
        Problem,
    )
)]
async fn status(
    State(app): State<App>,
    _: Caller,
    parameters: Parameters,
) -> Result<Answer, Problem> {
    parameters.end()?;
    let asked = app.readers.ask(|reader| {
        async move { Ok((reader.watermark().await?, reader.expired_before())) }.boxed()
    });
    let (watermark, expired_before) = asked.await?;
    Answer::of(&Status {
        version: env!("CARGO_PKG_VERSION"),
        watermark,
        expired_before,
    })
}
