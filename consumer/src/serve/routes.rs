//! One list of routes, each with its part of the OpenAPI document.

use axum::Router;
use axum::handler::Handler;
use axum::routing::get;
use utoipa::openapi::OpenApi;

use super::app::App;

/// Routes, and the document that describes them. A room of routes makes one of these; see
/// [`api::routes`](super::api::routes).
pub(crate) struct Routes {
    pub(crate) router: Router<App>,
    pub(crate) document: OpenApi,
    /// The paths that are served, as the document has them.
    pub(crate) paths: Vec<String>,
}

impl Routes {
    /// None yet; `Doc` describes those that are added.
    pub(crate) fn of<Doc: utoipa::OpenApi>() -> Self {
        Self {
            router: Router::new(),
            document: Doc::openapi(),
            paths: Vec::new(),
        }
    }

    /// A route that is read, at the path which `Path`, made by `#[utoipa::path]`, names.
    pub(crate) fn get<Path: utoipa::Path, T: 'static>(
        mut self,
        handler: impl Handler<T, App>,
    ) -> Self {
        let path = Path::path();
        self.router = self.router.route(&path, get(handler));
        self.paths.push(path);
        self
    }

    /// These and those.
    pub(crate) fn merge(mut self, more: Self) -> Self {
        self.router = self.router.merge(more.router);
        self.document.merge(more.document);
        self.paths.extend(more.paths);
        self
    }
}
