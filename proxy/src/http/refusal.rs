//! What the HTTP library answers by itself: it refuses what is not HTTP, or has too large a head, before
//! any of our code sees a request. Such an answer is recognised as it is written, and says why it is one.

use http::StatusCode;

use super::headers::REASON;
use crate::reason::Reason;

/// The statuses the library refuses with.
const STATUSES: [StatusCode; 3] =
    [StatusCode::BAD_REQUEST, StatusCode::URI_TOO_LONG, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE];

/// The status, if these bytes are a whole refusal of the library: a head with nothing but what the library
/// itself adds. An application's answer may look the same; the caller knows that none is being written.
pub fn recognise(bytes: &[u8]) -> Option<StatusCode> {
    let text = std::str::from_utf8(bytes).ok()?.strip_prefix("HTTP/1.1 ")?.strip_suffix("\r\n\r\n")?;
    let mut lines = text.split("\r\n");
    let status = StatusCode::from_bytes(lines.next()?.as_bytes().get(..3)?).ok()?;
    let plain =
        |line: &str| line == "connection: close" || line == "content-length: 0" || line.starts_with("date: ");
    (STATUSES.contains(&status) && lines.all(plain)).then_some(status)
}

/// The same with the mesh's reason.
pub fn explained(refusal: &[u8]) -> Vec<u8> {
    let head = refusal.strip_suffix(b"\r\n").unwrap_or(refusal);
    let reason = format!("{REASON}: {}\r\n\r\n", Reason::BadRequest.as_str());
    [head, reason.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_refusal_is_one() {
        let refusal =
            b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: now\r\n\r\n";
        assert_eq!(recognise(refusal), Some(StatusCode::BAD_REQUEST));
        let text = String::from_utf8(explained(refusal)).unwrap();
        assert!(text.ends_with("date: now\r\nx-mesh-reason: bad_request\r\n\r\n"), "{text}");
        for other in [
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nx-app: 1\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            "",
        ] {
            assert_eq!(recognise(other.as_bytes()), None, "{other}");
        }
    }
}
