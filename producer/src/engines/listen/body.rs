//! Reads the body of a request: within limits of size and time, decompressed.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use flate2::write::MultiGzDecoder;
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use super::problem::Problem;

/// Bytes of all bodies that are being received or whose reports are not acknowledged yet.
const ROOM_BYTES: usize = 64 << 20;
/// What a report takes besides its bytes, in librdkafka and here.
const REPORT_OVERHEAD_BYTES: usize = 512;
/// Time limit for a body.
const READ_LIMIT: Duration = Duration::from_secs(30);
/// Compressed bytes that are decompressed at a time, to a megabyte at most. Other requests have their turn in between.
const TURN_BYTES: usize = 1 << 10;
/// How much of a refused body is still read, and for how long: many clients read no answer before they have sent all.
const UNREAD_MAX_BYTES: usize = ROOM_BYTES;
const UNREAD_LIMIT: Duration = Duration::from_secs(5);

/// Bounds the memory of all requests together.
#[derive(Clone)]
pub(super) struct Room(Arc<Semaphore>);

/// The part of the [`Room`] that a request has.
pub(super) struct Held {
    room: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM_BYTES)))
    }
}

impl Held {
    fn of(room: &Room) -> Self {
        Self {
            room: room.0.clone(),
            permit: None,
        }
    }

    /// # Errors
    /// 429 if there is no room.
    fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let count = u32::try_from(bytes).unwrap_or(u32::MAX);
        let Ok(more) = self.room.clone().try_acquire_many_owned(count) else {
            return Err(Problem::full());
        };
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        Ok(())
    }

    /// Makes room for this many reports on their way to Kafka.
    ///
    /// # Errors
    /// 429 if there is none.
    pub(super) fn grow_for(&mut self, reports: usize) -> Result<(), Problem> {
        self.grow(reports.saturating_mul(REPORT_OVERHEAD_BYTES))
    }
}

/// Reads the whole body, decompressed; `max_bytes` is its limit, compressed and decompressed.
///
/// # Errors
/// 400 if it ends early or is no gzip, 408 if it takes too long, 413 if it is too large, 415 for another encoding than
/// gzip, 429 if there is no room for it.
pub(super) async fn read(
    parts: &Parts,
    body: &mut BodyDataStream,
    max_bytes: usize,
    room: &Room,
) -> Result<(Vec<u8>, Held), Problem> {
    let mut decoder = Decoder::of(&parts.headers.get_all(header::CONTENT_ENCODING), max_bytes)?;
    let length = parts.headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > max_bytes as u64) {
        return Err(too_large(max_bytes));
    }
    let mut held = Held::of(room);
    let read = async {
        let (mut received, mut charged) = (0_usize, 0);
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| {
                tracing::debug!("a request's body: {error}");
                Problem::new(StatusCode::BAD_REQUEST, "the body ends early")
            })?;
            received += chunk.len();
            if received > max_bytes {
                return Err(too_large(max_bytes));
            }
            for piece in chunk.chunks(TURN_BYTES) {
                decoder.feed(piece)?;
                let bytes = decoder.text().bytes.len();
                held.grow(bytes - charged)?;
                if bytes - charged > piece.len() {
                    yield_now().await;
                }
                charged = bytes;
            }
        }
        // A decompressor keeps the last ones until the end.
        let text = decoder.end()?;
        held.grow(text.len() - charged)?;
        Ok(text)
    };
    let Ok(text) = timeout(READ_LIMIT, read).await else {
        let detail = format!("the body took longer than {} s", READ_LIMIT.as_secs());
        return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail));
    };
    Ok((text?, held))
}

/// Reads and discards the rest of a refused body, within limits of size and time.
pub(super) async fn drain(body: &mut BodyDataStream) {
    let all = async {
        let mut bytes = 0;
        while let Some(Ok(chunk)) = body.next().await {
            bytes += chunk.len();
            if bytes > UNREAD_MAX_BYTES {
                return;
            }
        }
    };
    tokio::select! {
        () = all => {}
        () = sleep(UNREAD_LIMIT) => {}
    }
}

fn too_large(max_bytes: usize) -> Problem {
    let detail = format!("the body is larger than {max_bytes} bytes; send less at once");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
}

enum Decoder {
    Plain(Text),
    Gzip(Box<MultiGzDecoder<Text>>),
}

/// Decompressed bytes.
#[derive(Debug)]
struct Text {
    bytes: Vec<u8>,
    max_bytes: usize,
    is_too_large: bool,
}

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.max_bytes {
            self.is_too_large = true;
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Decoder {
    fn of(encodings: &header::GetAll<'_, HeaderValue>, max_bytes: usize) -> Result<Self, Problem> {
        let mut decoder = Self::Plain(Text {
            bytes: Vec::new(),
            max_bytes,
            is_too_large: false,
        });
        for encoding in encodings {
            let encoding = encoding.as_bytes().trim_ascii();
            let is = |name: &str| encoding.eq_ignore_ascii_case(name.as_bytes());
            decoder = match decoder {
                Self::Plain(text) if is("identity") || is("") => Self::Plain(text),
                Self::Plain(text) if is("gzip") || is("x-gzip") => {
                    Self::Gzip(Box::new(MultiGzDecoder::new(text)))
                }
                _ => {
                    let detail = "Content-Encoding: send the body as it is, or compressed by gzip";
                    return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
                        .with(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip")));
                }
            };
        }
        Ok(decoder)
    }

    fn text(&self) -> &Text {
        match self {
            Self::Plain(text) => text,
            Self::Gzip(decoder) => decoder.get_ref(),
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        let fed = match self {
            Self::Plain(text) => text.write_all(bytes),
            Self::Gzip(decoder) => decoder.write_all(bytes),
        };
        fed.map_err(|error| self.fault(&error))
    }

    fn end(&mut self) -> Result<Vec<u8>, Problem> {
        if let Self::Gzip(decoder) = self
            && let Err(error) = decoder.try_finish()
        {
            return Err(self.fault(&error));
        }
        Ok(match self {
            Self::Plain(text) => std::mem::take(&mut text.bytes),
            Self::Gzip(decoder) => std::mem::take(&mut decoder.get_mut().bytes),
        })
    }

    fn fault(&self, error: &std::io::Error) -> Problem {
        if self.text().is_too_large {
            return too_large(self.text().max_bytes);
        }
        let detail =
            format!("the body is not whole gzip data, as its Content-Encoding says: {error}");
        Problem::new(StatusCode::BAD_REQUEST, detail)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use axum::body::Body;
    use axum::http::Request;
    use flate2::Compression;
    use flate2::read::GzEncoder;

    use super::*;

    const BODY_MAX_BYTES: usize = 16 << 20;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut gzip = Vec::new();
        let mut encoder = GzEncoder::new(text, Compression::fast());
        encoder.read_to_end(&mut gzip).unwrap();
        gzip
    }

    async fn read(encoding: &str, body: Vec<u8>, room: &Room) -> Result<(Vec<u8>, Held), Problem> {
        let request = Request::post("/").header("content-encoding", encoding);
        // In pieces, as a connection gives it.
        let pieces: Vec<_> = body.chunks(1_000).map(<[u8]>::to_vec).collect();
        let pieces = futures_util::stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
        let (parts, body) = request
            .body(Body::from_stream(pieces))
            .unwrap()
            .into_parts();
        super::read(&parts, &mut body.into_data_stream(), BODY_MAX_BYTES, room).await
    }

    async fn status(encoding: &str, body: Vec<u8>) -> u16 {
        match read(encoding, body, &Room::default()).await {
            Ok(_) => 200,
            Err(problem) => problem.status().as_u16(),
        }
    }

    #[tokio::test]
    async fn a_body_is_read_as_it_is_or_decompressed() {
        let text = b"reports ".repeat(10_000);
        let room = Room::default();
        let members = [gzip(&text[..300]), gzip(&text[300..])].concat();
        for (encoding, body) in [
            ("identity", text.clone()),
            ("gzip", gzip(&text)),
            ("X-GZIP", members),
        ] {
            let (read, held) = read(encoding, body, &room).await.ok().unwrap();
            assert!(read == text, "{encoding}");
            assert_eq!(room.0.available_permits(), ROOM_BYTES - text.len());
            drop(held);
        }
        assert_eq!(room.0.available_permits(), ROOM_BYTES);
    }

    #[tokio::test]
    async fn too_large_a_body_is_413_however_small_it_is_compressed() {
        let (most, more) = (vec![b' '; BODY_MAX_BYTES], vec![b' '; BODY_MAX_BYTES + 1]);
        assert_eq!(status("identity", most.clone()).await, 200);
        assert_eq!(status("gzip", gzip(&most)).await, 200);
        assert_eq!(status("identity", more.clone()).await, 413);
        let bomb = gzip(&more);
        assert!(bomb.len() < 200_000);
        assert_eq!(status("gzip", bomb).await, 413);
    }

    #[tokio::test]
    async fn what_is_not_whole_gzip_is_400_and_other_encodings_415() {
        let whole = gzip(b"{}");
        assert_eq!(status("gzip", whole[..whole.len() - 1].to_vec()).await, 400);
        assert_eq!(status("gzip", b"{}".to_vec()).await, 400);
        assert_eq!(status("gzip", [&whole[..], b"{}"].concat()).await, 400);
        assert_eq!(status("gzip", Vec::new()).await, 400);
        for encoding in ["br", "zstd", "deflate", "gzip, gzip"] {
            assert_eq!(status(encoding, whole.clone()).await, 415, "{encoding}");
        }
    }

    #[tokio::test]
    async fn without_room_a_body_is_429_until_there_is_some() {
        let room = Room::default();
        let mut all = Vec::new();
        for _ in 0..ROOM_BYTES / BODY_MAX_BYTES {
            let body = vec![b' '; BODY_MAX_BYTES];
            all.push(read("identity", body, &room).await.ok().unwrap());
        }
        let refused = read("identity", b"{}".to_vec(), &room).await;
        assert_eq!(refused.err().unwrap().status().as_u16(), 429);
        all.pop();
        let (_, mut held) = read("identity", b"{}".to_vec(), &room).await.ok().unwrap();
        assert!(held.grow_for(1).is_ok());
        assert!(
            held.grow_for(BODY_MAX_BYTES / REPORT_OVERHEAD_BYTES)
                .is_err()
        );
    }
}
