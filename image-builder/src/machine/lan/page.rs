//! The front page of the guest `httpd`: it says whose it is.

use std::net::Ipv4Addr;

/// Whether an answer is the front page of the VM with this name and address.
pub fn is_of(answer: &str, name: &str, address: Ipv4Addr) -> bool {
    let own = [format!("<h1>{name}</h1>"), format!("<dd>{address}/")];
    answer.starts_with("HTTP/1.1 200") && own.iter().all(|part| answer.contains(part.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_not_taken_for_each_other() {
        let page = "HTTP/1.1 200 OK\r\n\r\n<h1>httpd-12</h1><dd>10.0.0.26/8</dd>";
        let address = Ipv4Addr::new(10, 0, 0, 26);
        assert!(is_of(page, "httpd-12", address));
        assert!(!is_of(page, "httpd-1", address));
        assert!(!is_of(page, "httpd-12", Ipv4Addr::new(10, 0, 0, 2)));
        assert!(!is_of(&page.replace("200", "404"), "httpd-12", address));
    }
}
