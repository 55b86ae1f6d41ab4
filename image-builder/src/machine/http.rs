//! Asking VMs for pages, as a browser would.

use std::time::{Duration, Instant};

use crate::interrupt;

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// Status code.
    pub status: i32,
    /// Body.
    pub body: Vec<u8>,
}

impl Page {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One GET request to a port of this host. The error says in words what went wrong.
pub fn get(port: u16, path: &str, limit: Duration) -> Result<Page, String> {
    let seconds = limit.as_secs().max(1);
    let request = minreq::get(format!("http://127.0.0.1:{port}{path}")).with_timeout(seconds);
    let response = request.send().map_err(|error| error.to_string())?;
    Ok(Page { status: response.status_code, body: response.into_bytes() })
}

/// Asks again and again until there is an answer, the time is up, or the user pressed Ctrl-C.
pub fn wait(port: u16, path: &str, deadline: Instant) -> Result<Page, String> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let result = get(port, path, left.min(Duration::from_secs(3)));
        if result.is_ok() || Instant::now() + PAUSE >= deadline || interrupt::requested() {
            return result;
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    #[test]
    fn an_answer_is_read_and_a_refusal_told() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0; 1024];
            let length = stream.read(&mut request).expect("a request");
            assert!(request[..length].starts_with(b"GET /page HTTP/1.1\r\n"));
            stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone").expect("the client listens");
        });
        let page = get(port, "/page", Duration::from_secs(5)).expect("an answer");
        assert_eq!((page.status, page.text().as_str()), (404, "none"));
        server.join().expect("the server saw a GET request");
        get(port, "/", Duration::from_secs(5)).expect_err("nobody listens any more");
        let soon = Instant::now() + Duration::from_millis(150);
        wait(port, "/", soon).expect_err("nobody will");
    }
}
