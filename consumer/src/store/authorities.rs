//! A file of several certificate authorities, as during a rotation: sqlx 0.9.0 loads only the first one, so each of them
//! is tried.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The file of a URL, if the server's certificate is to be verified.
#[derive(Clone, Default)]
pub(super) struct Authorities {
    file: Option<String>,
    /// The index in the file of the one that last verified a server.
    last: Arc<AtomicUsize>,
}

impl Authorities {
    pub(super) fn of(file: Option<String>) -> Self {
        Self {
            file,
            last: Arc::default(),
        }
    }

    /// Connects by one authority after the other, starting with the one that last succeeded. Without an argument, `connect`
    /// uses the file by itself.
    ///
    /// # Errors
    /// If the file cannot be read, none of its authorities verifies the server, or anything else fails.
    pub(super) async fn connect<C, F>(
        &self,
        connect: impl Fn(Option<&str>) -> F,
    ) -> Result<C, sqlx::Error>
    where
        F: Future<Output = Result<C, sqlx::Error>>,
    {
        let Some(file) = &self.file else {
            return connect(None).await;
        };
        let text = tokio::fs::read_to_string(file).await?;
        let authorities = certificates(&text);
        if authorities.len() < 2 {
            return connect(None).await;
        }
        let first = self.last.load(Ordering::Relaxed);
        let mut last = None;
        for place in (0..authorities.len()).map(|i| (first + i) % authorities.len()) {
            match connect(Some(authorities[place])).await {
                Ok(connection) => {
                    self.last.store(place, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(sqlx::Error::Tls(error)) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        let last = last.map_or_else(String::new, |error| format!(": {error}"));
        let count = authorities.len();
        let error = format!(
            "none of the {count} authorities of {file} verifies the server's certificate{last} (each is tried separately: a \
             server with a certificate of an intermediate authority has to send that authority's certificate too)"
        );
        Err(sqlx::Error::Tls(error.into()))
    }
}

/// The certificates in a file, each including its first and last line.
fn certificates(text: &str) -> Vec<&str> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let begun = text.match_indices(BEGIN).map(|(begin, _)| &text[begin..]);
    begun
        .filter_map(|text| Some(&text[..text.find(END)? + END.len()]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_authorities_holds_each_of_them() {
        let one = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----";
        let other = one.replace("AAAA", "BBBB");
        let bundle =
            format!("# first\n{one}\n\n# second\n{other}\n-----BEGIN CERTIFICATE-----\ncut");
        assert_eq!(certificates(&bundle), [one, &other]);
        assert!(certificates("").is_empty());
    }
}
