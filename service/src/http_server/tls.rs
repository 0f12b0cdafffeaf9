//! HTTPS with certificate files.

use std::path::Path;

use tokio_native_tls::TlsAcceptor;
use tokio_native_tls::native_tls::{self, Identity, Protocol};

use crate::error::NeedsAttention;
use crate::reloaded::Reloaded;

/// The TLS acceptor of the files of `--tls-cert` and `--tls-key`, if they are given.
///
/// # Errors
/// If a file cannot be read or is invalid.
pub fn tls_acceptor(
    cert: Option<&Path>,
    key: Option<&Path>,
) -> Result<Option<Reloaded<TlsAcceptor>>, NeedsAttention> {
    let (Some(cert), Some(key)) = (cert.map(Path::to_owned), key.map(Path::to_owned)) else {
        return Ok(None);
    };
    let files = vec![cert.clone(), key.clone()];
    Reloaded::of(files, move || of_files(&cert, &key)).map(Some)
}

fn of_files(cert: &Path, key: &Path) -> Result<TlsAcceptor, NeedsAttention> {
    let identity = Identity::from_pkcs8(&read("--tls-cert", cert)?, &read("--tls-key", key)?);
    let acceptor = identity.and_then(|identity| {
        let mut acceptor = native_tls::TlsAcceptor::builder(identity);
        acceptor
            .min_protocol_version(Some(Protocol::Tlsv12))
            .build()
    });
    let acceptor = acceptor.map_err(|error| {
        NeedsAttention(format!(
            "--tls-cert {} and --tls-key {} are not a certificate and its key: {error}. Convert a key in another format to \
             PKCS #8 by: openssl pkcs8 -topk8 -nocrypt",
            cert.display(),
            key.display()
        ))
    })?;
    Ok(acceptor.into())
}

fn read(option: &str, file: &Path) -> Result<Vec<u8>, NeedsAttention> {
    std::fs::read(file)
        .map_err(|error| NeedsAttention(format!("{option} {}: {error}", file.display())))
}
