//! The page's scripts, stylesheet and icon, compiled in. Their folder is named by a checksum of their content, so
//! that browsers may cache them for ever. Imports between scripts are relative, and so stay in the folder.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use service::text::hex;
use sha2::{Digest, Sha256};

use crate::serve::problem::Problem;

/// The path above the folder.
pub(super) const STATIC: &str = "/static";
/// Number of hexadecimal digits of the folder's checksum.
const DIGITS: usize = 16;

struct Asset {
    name: &'static str,
    content_type: &'static str,
    text: &'static str,
}

macro_rules! asset {
    ($name:literal, $content_type:expr) => {
        Asset {
            name: $name,
            content_type: $content_type,
            text: include_str!(concat!("static/", $name)),
        }
    };
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

const ASSETS: &[Asset] = &[
    asset!("page.css", "text/css; charset=utf-8"),
    asset!("icon.svg", "image/svg+xml"),
    asset!("page.js", SCRIPT),
    asset!("cells.js", SCRIPT),
    asset!("clock.js", SCRIPT),
    asset!("keys.js", SCRIPT),
    asset!("live.js", SCRIPT),
    asset!("past.js", SCRIPT),
    asset!("plot.js", SCRIPT),
    asset!("reread.js", SCRIPT),
    asset!("rows.js", SCRIPT),
    asset!("state.js", SCRIPT),
    asset!("swap.js", SCRIPT),
];

/// `/static/…`, the folder of this build.
pub(super) static FOLDER: LazyLock<String> = LazyLock::new(|| format!("{STATIC}/{}", &*VERSION));

static VERSION: LazyLock<String> = LazyLock::new(|| {
    let mut sum = Sha256::new();
    for asset in ASSETS {
        sum.update(asset.name);
        sum.update([0]);
        sum.update(asset.text);
        sum.update([0]);
    }
    hex(&sum.finalize())[..DIGITS].to_owned()
});

/// A file of this build. A page of another build requests another folder, and has to be reloaded.
pub(super) async fn asset(Path((version, name)): Path<(String, String)>) -> Response {
    let found = ASSETS
        .iter()
        .find(|asset| asset.name == name && version == *VERSION);
    let Some(asset) = found else {
        let detail = "no such file in this version; reload the page";
        return Problem::new(StatusCode::NOT_FOUND, detail).into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, asset.content_type),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
    ];
    (headers, asset.text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_import_of_a_module_is_served() {
        for asset in ASSETS.iter().filter(|asset| asset.content_type == SCRIPT) {
            for import in asset.text.split("from \"./").skip(1) {
                let name = import.split('"').next().unwrap();
                assert!(
                    ASSETS.iter().any(|other| other.name == name),
                    "{}: {name}",
                    asset.name
                );
            }
        }
    }

    #[test]
    fn no_module_makes_markup_of_text() {
        for asset in ASSETS {
            for sink in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "DOMParser",
                "createContextualFragment",
                "eval(",
                "Function(",
                "srcdoc",
                "setHTML",
            ] {
                assert!(!asset.text.contains(sink), "{} uses {sink}", asset.name);
            }
        }
    }
}
