//! Reading a request. Everything in it is hostile until shown otherwise.

use httparse::{Error, Status as Parsed};

/// Bytes of the longest request head.
pub const HEAD_MAX: usize = 2048;
/// Most header lines of a request.
pub const HEADERS_MAX: usize = 48;

/// Why a request is refused, as the status of the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Not a request.
    BadRequest,
    /// No such file.
    NotFound,
    /// A method that this server does not offer.
    MethodNotAllowed,
    /// The request did not come in time.
    RequestTimeout,
    /// A request with a body: there is nothing here that takes one.
    ContentTooLarge,
    /// The request head is too long.
    HeadTooLarge,
    /// A method that nobody knows.
    NotImplemented,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    VersionNotSupported,
}

impl Refusal {
    /// Status code and reason.
    pub const fn status(self) -> (u16, &'static str) {
        match self {
            Refusal::BadRequest => (400, "Bad Request"),
            Refusal::NotFound => (404, "Not Found"),
            Refusal::MethodNotAllowed => (405, "Method Not Allowed"),
            Refusal::RequestTimeout => (408, "Request Timeout"),
            Refusal::ContentTooLarge => (413, "Content Too Large"),
            Refusal::HeadTooLarge => (431, "Request Header Fields Too Large"),
            Refusal::NotImplemented => (501, "Not Implemented"),
            Refusal::VersionNotSupported => (505, "HTTP Version Not Supported"),
        }
    }
}

/// A request for a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    /// Only the head of the answer is wanted.
    pub head_only: bool,
    /// Path, without the query.
    pub path: &'a str,
    /// The connection may stay open after the answer.
    pub keep_alive: bool,
    /// Tags of contents that the client has already.
    pub if_none_match: Option<&'a [u8]>,
}

/// What has come so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome<'a> {
    /// Not a whole head yet.
    Partial,
    /// A request, and the bytes of its head.
    Request(Request<'a>, usize),
    /// A well-formed request that is refused, the bytes of its head, and whether the connection may stay open.
    Refused(Refusal, usize, bool),
    /// Not to be understood: the connection ends after the answer.
    Broken(Refusal),
}

/// Reads the request at the beginning of `bytes`.
pub fn read(bytes: &[u8]) -> Outcome<'_> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(Parsed::Complete(length)) => length,
        Ok(Parsed::Partial) if bytes.len() < HEAD_MAX => return Outcome::Partial,
        Ok(Parsed::Partial) | Err(Error::TooManyHeaders) => return Outcome::Broken(Refusal::HeadTooLarge),
        Err(Error::Version) => return Outcome::Broken(Refusal::VersionNotSupported),
        Err(_) => return Outcome::Broken(Refusal::BadRequest),
    };
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Outcome::Broken(Refusal::BadRequest);
    };
    let mut keep_alive = version == 1;
    let (mut hosts, mut body, mut if_none_match) = (0, false, None);
    for header in request.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("host") {
            hosts += 1;
        } else if is("connection") {
            for option in header.value.split(|byte| *byte == b',') {
                if option.trim_ascii().eq_ignore_ascii_case(b"close") {
                    keep_alive = false;
                } else if version == 0 && option.trim_ascii().eq_ignore_ascii_case(b"keep-alive") {
                    keep_alive = true;
                }
            }
        } else if is("content-length") {
            match core::str::from_utf8(header.value).ok().and_then(|value| value.trim().parse::<u64>().ok()) {
                Some(0) => {}
                Some(_) => body = true,
                None => return Outcome::Broken(Refusal::BadRequest),
            }
        } else if is("transfer-encoding") {
            body = true;
        } else if is("if-none-match") {
            if_none_match = Some(header.value);
        }
    }
    if hosts > 1 || (version == 1 && hosts == 0) {
        return Outcome::Broken(Refusal::BadRequest);
    }
    let head_only = match method {
        "GET" => false,
        "HEAD" => true,
        // The body of a refused request is not read, so the next one cannot be found.
        "POST" | "PUT" | "DELETE" | "PATCH" | "OPTIONS" | "TRACE" | "CONNECT" => {
            return Outcome::Refused(Refusal::MethodNotAllowed, length, keep_alive && !body);
        }
        _ => return Outcome::Refused(Refusal::NotImplemented, length, keep_alive && !body),
    };
    if body {
        return Outcome::Broken(Refusal::ContentTooLarge);
    }
    match path(target) {
        Some(path) => Outcome::Request(Request { head_only, path, keep_alive, if_none_match }, length),
        None => Outcome::Broken(Refusal::BadRequest),
    }
}

/// The path of a request target: `/path?query` or `http://host/path?query`.
fn path(target: &str) -> Option<&str> {
    let target = match target.split_at_checked(7) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http://") => match rest.find(['/', '?']) {
            Some(start) if rest[start..].starts_with('/') => &rest[start..],
            _ => "/",
        },
        _ => target,
    };
    let path = target.split(['?', '#']).next().unwrap_or(target);
    path.starts_with('/').then_some(path)
}

/// Whether a list of tags (`If-None-Match`) has this one.
pub fn has_tag(list: &[u8], tag: &str) -> bool {
    list.split(|byte| *byte == b',')
        .map(|item| item.trim_ascii())
        .any(|item| item == b"*" || item.strip_prefix(b"W/").unwrap_or(item) == tag.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{format, string::String};

    fn request(text: &str) -> Request<'_> {
        match read(text.as_bytes()) {
            Outcome::Request(request, length) => {
                assert_eq!(length, text.len());
                request
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_browser_is_understood() {
        let read = request("GET /style.css?v=1 HTTP/1.1\r\nHost: vm\r\nAccept: */*\r\n\r\n");
        assert_eq!(read, Request { head_only: false, path: "/style.css", keep_alive: true, if_none_match: None });
        assert!(request("HEAD / HTTP/1.1\r\nhost: vm\r\n\r\n").head_only);
    }

    #[test]
    fn connections_stay_open_as_the_client_says() {
        assert!(!request("GET / HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n").keep_alive);
        assert!(!request("GET / HTTP/1.1\r\nHost: v\r\nConnection: x, Close\r\n\r\n").keep_alive);
        assert!(!request("GET / HTTP/1.0\r\n\r\n").keep_alive);
        assert!(request("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keep_alive);
    }

    #[test]
    fn targets_may_be_whole_urls() {
        assert_eq!(path("http://vm/a?b"), Some("/a"));
        assert_eq!(path("HTTP://vm"), Some("/"));
        assert_eq!(path("http://vm?x/y"), Some("/"));
        assert_eq!(path("*"), None);
        assert_eq!(path("a/b"), None);
    }

    #[test]
    fn parts_of_a_request_are_waited_for() {
        let whole = "GET / HTTP/1.1\r\nHost: vm\r\n\r\n";
        for length in 0..whole.len() {
            assert_eq!(read(&whole.as_bytes()[..length]), Outcome::Partial, "{length}");
        }
    }

    #[test]
    fn the_head_ends_where_it_ends() {
        let text = "GET /a HTTP/1.1\r\nHost: v\r\n\r\nGET /b HTTP/1.1\r\n";
        let Outcome::Request(first, length) = read(text.as_bytes()) else { panic!("a whole request") };
        assert_eq!(first.path, "/a");
        assert!(text[length..].starts_with("GET /b"));
    }

    #[test]
    fn refusals() {
        let refused = |text: &str| match read(text.as_bytes()) {
            Outcome::Refused(refusal, _, keep) => (refusal, keep),
            Outcome::Broken(refusal) => (refusal, false),
            other => panic!("{text:?}: {other:?}"),
        };
        assert_eq!(refused("POST / HTTP/1.1\r\nHost: v\r\n\r\n"), (Refusal::MethodNotAllowed, true));
        assert_eq!(
            refused("POST / HTTP/1.1\r\nHost: v\r\nContent-Length: 3\r\n\r\n"),
            (Refusal::MethodNotAllowed, false)
        );
        assert_eq!(refused("BREW / HTTP/1.1\r\nHost: v\r\n\r\n"), (Refusal::NotImplemented, true));
        assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), (Refusal::BadRequest, false));
        assert_eq!(refused("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), (Refusal::BadRequest, false));
        assert_eq!(refused("GET * HTTP/1.1\r\nHost: a\r\n\r\n"), (Refusal::BadRequest, false));
        assert_eq!(refused("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), (Refusal::VersionNotSupported, false));
        assert_eq!(refused("\x16\x03\x01\x02"), (Refusal::BadRequest, false));
        assert_eq!(refused("GET / HTTP/1.1\r\nHost: v\r\nContent-Length: x\r\n\r\n"), (Refusal::BadRequest, false));
        assert_eq!(
            refused("GET / HTTP/1.1\r\nHost: v\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (Refusal::ContentTooLarge, false)
        );
        let many: String = (0..HEADERS_MAX + 1).map(|n| format!("h{n}: x\r\n")).collect();
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\n{many}\r\n")), (Refusal::HeadTooLarge, false));
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(HEAD_MAX));
        assert_eq!(refused(&long), (Refusal::HeadTooLarge, false));
    }

    #[test]
    fn tags_are_found_in_lists() {
        assert!(has_tag(b"\"a\"", "\"a\""));
        assert!(has_tag(b"\"b\", W/\"a\"", "\"a\""));
        assert!(has_tag(b"*", "\"a\""));
        assert!(!has_tag(b"\"ab\", a", "\"a\""));
    }

    #[test]
    fn any_bytes_are_harmless() {
        let mut seed = 1u32;
        let base =
            *b"GET /a?b HTTP/1.1\r\nHost: vm\r\nConnection: close\r\nContent-Length: 0\r\nIf-None-Match: \"x\"\r\n\r\n";
        for _ in 0..200_000 {
            let mut bytes = base;
            for _ in 0..3 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                bytes[(seed >> 8) as usize % base.len()] = seed as u8;
            }
            if let Outcome::Request(request, length) = read(&bytes) {
                assert!(length <= bytes.len() && request.path.starts_with('/'));
            }
        }
    }
}
