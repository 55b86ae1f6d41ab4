//! The head and body of an answer.

use crate::{
    files,
    page::{self, Facts},
    request::{Refusal, Request, has_tag},
    site::{self, Site},
};
use alloc::{borrow::Cow, format, string::String};
use core::fmt::Write;

/// An answer, ready to be sent.
#[derive(Debug)]
pub struct Answer {
    /// Status line and headers, with the empty line.
    pub head: String,
    /// Body; empty if only the head was asked for.
    pub body: Body,
    /// Whether the connection stays open.
    pub keep_alive: bool,
}

/// Where a body is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// In memory.
    Memory(Cow<'static, [u8]>),
    /// On the site's disk.
    Disk {
        /// Offset of the first byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}

impl Body {
    /// None.
    pub const EMPTY: Body = Body::Memory(Cow::Borrowed(&[]));

    /// Bytes.
    pub fn len(&self) -> u64 {
        match self {
            Body::Memory(bytes) => bytes.len() as u64,
            Body::Disk { length, .. } => *length,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How long a client may keep what it got.
#[derive(Clone, Copy)]
enum Cache {
    /// Not at all: it changes.
    No,
    /// For ever, asking with the tag whether it is still right.
    Tagged(&'static str),
}

/// Answers a request: with a file of the site, if there is one of this path, else with what is built in.
pub fn answer(request: &Request, facts: &Facts, site: &Site) -> Answer {
    let on_disk = site.find(request.path);
    let owned = |text: String| Body::Memory(Cow::Owned(text.into_bytes()));
    let (kind, cache, body): (_, _, Body) = match (request.path, on_disk) {
        (_, Some(file)) => {
            let body = Body::Disk { offset: file.offset, length: file.length };
            (site::content_type(file.path()), Cache::No, body)
        }
        ("/", None) => ("text/html; charset=utf-8", Cache::No, owned(page::front(facts))),
        ("/status.json", None) => ("application/json", Cache::No, owned(page::status(facts))),
        (path, None) => match files::find(path) {
            Some(file) => (file.content_type, Cache::Tagged(file.tag), Body::Memory(Cow::Borrowed(file.bytes))),
            None => {
                let mut answer = refuse(Refusal::NotFound, request.keep_alive);
                if request.head_only {
                    answer.body = Body::EMPTY;
                }
                return answer;
            }
        },
    };
    let unchanged = match (cache, request.if_none_match) {
        (Cache::Tagged(tag), Some(list)) => has_tag(list, tag),
        _ => false,
    };
    let mut head = start(if unchanged { (304, "Not Modified") } else { (200, "OK") }, request.keep_alive);
    match cache {
        Cache::No => head.push_str("Cache-Control: no-store\r\n"),
        Cache::Tagged(tag) => push(&mut head, format_args!("Cache-Control: no-cache\r\nETag: {tag}\r\n")),
    }
    if !unchanged {
        push(&mut head, format_args!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let body = if unchanged || request.head_only { Body::EMPTY } else { body };
    Answer { head, body, keep_alive: request.keep_alive }
}

/// Refuses a request.
pub fn refuse(refusal: Refusal, keep_alive: bool) -> Answer {
    let (code, reason) = refusal.status();
    let body = format!("{code} {reason}\n");
    let mut head = start((code, reason), keep_alive);
    if refusal == Refusal::MethodNotAllowed {
        head.push_str("Allow: GET, HEAD\r\n");
    }
    push(&mut head, format_args!("Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\r\n", body.len()));
    Answer { head, body: Body::Memory(Cow::Owned(body.into_bytes())), keep_alive }
}

fn start((code, reason): (u16, &str), keep_alive: bool) -> String {
    let mut head = String::with_capacity(320);
    push(&mut head, format_args!("HTTP/1.1 {code} {reason}\r\nServer: httpd on ilwaco\r\n"));
    head.push_str(if keep_alive { "Connection: keep-alive\r\n" } else { "Connection: close\r\n" });
    head.push_str("X-Content-Type-Options: nosniff\r\n");
    head
}

fn push(head: &mut String, text: core::fmt::Arguments) {
    // Writing to a string cannot fail.
    let _ = head.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> Request<'_> {
        Request { head_only: false, path, keep_alive: true, if_none_match: None }
    }

    /// Splits an answer, checking that its length is what it says.
    fn check(answer: &Answer, head_only: bool) -> u16 {
        assert!(answer.head.ends_with("\r\n\r\n") && answer.head.is_ascii());
        let (line, rest) = answer.head.split_once("\r\n").unwrap();
        let code = line.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
        let length =
            rest.lines().find_map(|line| line.strip_prefix("Content-Length: ")).map(|n| n.parse::<usize>().unwrap());
        assert_eq!(length.is_none(), code == 304);
        if !head_only {
            assert_eq!(length.unwrap_or(0) as u64, answer.body.len());
        } else {
            assert!(answer.body.is_empty());
        }
        assert_eq!(answer.keep_alive, rest.contains("Connection: keep-alive\r\n"));
        code
    }

    #[test]
    fn files_pages_and_strangers() {
        let facts = Facts::example();
        for path in ["/", "/status.json", "/style.css", "/objects/2258", "/objects/100000"] {
            assert_eq!(check(&answer(&get(path), &facts, &Site::default()), false), 200, "{path}");
            let head = answer(&Request { head_only: true, ..get(path) }, &facts, &Site::default());
            assert_eq!(check(&head, true), 200, "{path}");
        }
        assert_eq!(check(&answer(&get("/../etc/passwd"), &facts, &Site::default()), false), 404);
        assert_eq!(
            check(&answer(&Request { head_only: true, ..get("/nothing") }, &facts, &Site::default()), true),
            404
        );
    }

    #[test]
    fn a_client_that_has_it_gets_nothing() {
        let facts = Facts::example();
        let first = answer(&get("/style.css"), &facts, &Site::default());
        let tag = first.head.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap();
        let again =
            answer(&Request { if_none_match: Some(tag.as_bytes()), ..get("/style.css") }, &facts, &Site::default());
        assert_eq!(check(&again, false), 304);
        let other = answer(&Request { if_none_match: Some(b"\"x\""), ..get("/style.css") }, &facts, &Site::default());
        assert_eq!(check(&other, false), 200);
        assert_eq!(
            check(&answer(&Request { if_none_match: Some(b"*"), ..get("/") }, &facts, &Site::default()), false),
            200
        );
    }

    #[test]
    fn every_refusal_is_an_answer() {
        use Refusal::*;
        for refusal in [
            BadRequest,
            NotFound,
            MethodNotAllowed,
            RequestTimeout,
            ContentTooLarge,
            HeadTooLarge,
            NotImplemented,
            VersionNotSupported,
        ] {
            assert_eq!(check(&refuse(refusal, false), false), refusal.status().0);
        }
        assert!(refuse(MethodNotAllowed, true).head.contains("Allow: GET, HEAD\r\n"));
    }
}
