//! Routes, each with its part of the OpenAPI document.

use axum::Router;
use axum::handler::Handler;
use axum::middleware::from_fn;
use axum::routing::get;
use service::http_server::measure;
use utoipa::openapi::OpenApi;

use super::app::App;

/// Routes, and the OpenAPI document that describes them. Each module of routes makes one; see
/// [`api::routes`](super::api::routes).
pub(crate) struct Routes {
    pub(crate) router: Router<App>,
    pub(crate) document: OpenApi,
    /// The served paths, as in the document.
    pub(crate) paths: Vec<String>,
}

impl Routes {
    /// No routes yet; `Doc` provides the document's metadata.
    pub(crate) fn of<Doc: utoipa::OpenApi>() -> Self {
        Self {
            router: Router::new(),
            document: Doc::openapi(),
            paths: Vec::new(),
        }
    }

    /// Adds a GET route at the path in `Path`, which `#[utoipa::path]` generates.
    pub(crate) fn get<Path: utoipa::Path, T: 'static>(
        mut self,
        handler: impl Handler<T, App>,
    ) -> Self {
        let path = Path::path();
        let route = path.clone();
        let measured = from_fn(move |request, next| measure(route.clone(), request, next));
        self.router = self.router.route(&path, get(handler).route_layer(measured));
        self.paths.push(path);
        self
    }

    /// Adds the routes of `more`.
    pub(crate) fn merge(mut self, more: Self) -> Self {
        self.router = self.router.merge(more.router);
        self.document.merge(more.document);
        self.paths.extend(more.paths);
        self
    }
}
