//! The front page and the status: what the VM says of itself.

use crate::files;
use alloc::{
    format,
    string::{String, ToString},
};
use serde::Serialize;

/// What there is to say of the VM.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// Number of the VM.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// IPv4 address and prefix length, `none` without one.
    pub address: String,
    /// MAC address.
    pub mac: String,
    /// Arguments from the system file.
    pub arguments: String,
    /// How many clones of its kind there were when it was made, with it; 0: it is not a clone.
    pub clone_generation: u32,
    /// When its creation began, in nanoseconds since kernel entry.
    pub created_ns: u64,
    /// Nanoseconds from the beginning of its creation to its first instruction.
    pub first_instruction_ns: u64,
    /// Nanoseconds from the same until it first waited.
    pub first_wait_ns: u64,
    /// Nanoseconds since it was created.
    pub uptime_ns: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes taken by its heap.
    pub heap_bytes: u64,
    /// Virtual interrupts taken.
    pub interrupts: u64,
    /// Times that it has waited, with nothing left to do.
    pub waits: u64,
    /// Packets sent.
    pub packets_sent: u64,
    /// Packets received.
    pub packets_received: u64,
    /// Packets lost for want of a buffer.
    pub packets_dropped: u64,
    /// Connections that are open.
    pub connections: u64,
    /// Requests answered, this one included.
    pub requests: u64,
    /// A random number, another one in each answer.
    pub random: u64,
}

impl Facts {
    /// The value for a `{{key}}` of a page; `None` if there is no such key.
    fn value(&self, key: &str) -> Option<String> {
        Some(match key {
            "id" => self.id.to_string(),
            "name" => self.name.clone(),
            "address" => self.address.clone(),
            "mac" => self.mac.clone(),
            "arguments" if self.arguments.is_empty() => "none".into(),
            "arguments" => self.arguments.clone(),
            "uptime" => format!("{}.{} s", self.uptime_ns / 1_000_000_000, self.uptime_ns / 100_000_000 % 10),
            "memory" => (self.memory_bytes / 1024).to_string(),
            "heap" => (self.heap_bytes / 1024).to_string(),
            "interrupts" => self.interrupts.to_string(),
            "packets_sent" => self.packets_sent.to_string(),
            "packets_received" => self.packets_received.to_string(),
            "packets_dropped" => self.packets_dropped.to_string(),
            "connections" => self.connections.to_string(),
            "requests" => self.requests.to_string(),
            _ => return None,
        })
    }
}

/// The front page: `www/index.html` with the facts filled in.
pub fn front(facts: &Facts) -> String {
    let template = files::find("/").and_then(|file| core::str::from_utf8(file.bytes).ok()).unwrap_or_default();
    fill(template, |key| facts.value(key))
}

/// The facts as JSON.
pub fn status(facts: &Facts) -> String {
    // Numbers and strings always have a form in JSON.
    serde_json::to_string(facts).unwrap_or_default()
}

/// Replaces every `{{key}}` by its value, escaped for HTML; unknown keys stay as they are.
fn fill(template: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut page = String::with_capacity(template.len() + 256);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        page.push_str(before);
        let Some((key, after)) = after.split_once("}}") else {
            page.push_str("{{");
            rest = after;
            continue;
        };
        match value(key) {
            Some(value) => escape(&mut page, &value),
            None => page.push_str(&format!("{{{{{key}}}}}")),
        }
        rest = after;
    }
    page.push_str(rest);
    page
}

fn escape(page: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '&' => page.push_str("&amp;"),
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '"' => page.push_str("&quot;"),
            '\'' => page.push_str("&#39;"),
            character => page.push(character),
        }
    }
}

#[cfg(test)]
impl Facts {
    pub(crate) fn example() -> Facts {
        Facts {
            id: 7,
            name: "web <0>".into(),
            address: "10.0.0.7/24".into(),
            mac: "52:54:00:00:00:07".into(),
            arguments: String::new(),
            clone_generation: 2,
            created_ns: 1_000_000,
            first_instruction_ns: 12_000,
            first_wait_ns: 15_000,
            uptime_ns: 12_345_678_901,
            memory_bytes: 1 << 20,
            heap_bytes: 8192,
            interrupts: 1,
            waits: 8,
            packets_sent: 2,
            packets_received: 3,
            packets_dropped: 4,
            connections: 5,
            requests: 6,
            random: 99,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_page_has_every_fact() {
        let page = front(&Facts::example());
        assert!(!page.contains("{{") && !page.contains("}}"));
        for part in ["web &lt;0&gt;", "10.0.0.7/24", "52:54:00:00:00:07", "12.3 s", "1024 KiB"] {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains("web <0>"));
    }

    #[test]
    fn the_status_is_json() {
        let facts = Facts { name: "a\"b\n".into(), ..Facts::example() };
        let value: serde_json::Value = serde_json::from_str(&status(&facts)).unwrap();
        assert_eq!(value["name"], "a\"b\n");
        assert_eq!(value["requests"], 6);
        assert_eq!(value["uptime_ns"], 12_345_678_901u64);
    }

    #[test]
    fn odd_templates_are_filled_as_far_as_can_be() {
        let value = |key: &str| (key == "a").then(|| "1".to_string());
        assert_eq!(fill("{{a}}{{b}}x{{a", value), "1{{b}}x{{a");
        assert_eq!(fill("", value), "");
        assert_eq!(fill("}}{{a}}{{", value), "}}1{{");
    }
}
