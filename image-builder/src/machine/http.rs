//! Asking VMs for pages, as a browser would.

use std::time::{Duration, Instant};

use ureq::Agent;

use crate::interrupt;

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the first attempt may take.
const FIRST_PATIENCE: Duration = Duration::from_millis(150);
/// How long an attempt may take after many.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// Status code.
    pub status: u16,
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
    let config = Agent::config_builder().timeout_global(Some(limit)).http_status_as_error(false);
    let agent = config.max_idle_connections(0).build().new_agent();
    let response = agent.get(format!("http://127.0.0.1:{port}{path}")).call();
    let mut response = response.map_err(|error| error.to_string())?;
    let body = response.body_mut().read_to_vec().map_err(|error| error.to_string())?;
    Ok(Page { status: response.status().into(), body })
}

/// Asks again and again until there is an answer, the time is up, or the user pressed Ctrl-C.
///
/// QEMU accepts a connection before the VM is there, and repeats its own attempts to reach the VM at growing
/// intervals. So the first requests are given up soon and made anew; later ones have more patience.
pub fn wait(port: u16, path: &str, deadline: Instant) -> Result<Page, String> {
    let mut patience = FIRST_PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let result = get(port, path, left.min(patience));
        if result.is_ok() || Instant::now() + PAUSE >= deadline || interrupt::requested() {
            return result;
        }
        std::thread::sleep(PAUSE);
        patience = (patience * 9 / 8).min(LAST_PATIENCE);
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
