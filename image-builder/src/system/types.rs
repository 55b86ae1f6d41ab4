//! Values in a system file that TOML has no type for, and what is said about wrong ones.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use protocol::layout::PAGE;
use protocol::manifest::PciMatch;
use protocol::nic::usual_mac;
use serde::Deserialize;

/// An amount of memory: `"64 KiB"`, `"4 MiB"`, `"1 GiB"` or a number of bytes; a multiple of a page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(try_from = "SizeText")]
pub struct Size(pub u64);

#[derive(Deserialize)]
#[serde(untagged, expecting = "a size is written like \"64 KiB\", \"4 MiB\", \"1 GiB\" or as a number of bytes")]
enum SizeText {
    Bytes(u64),
    Text(String),
}

impl TryFrom<SizeText> for Size {
    type Error = String;

    fn try_from(text: SizeText) -> Result<Size, String> {
        let bytes = match text {
            SizeText::Bytes(bytes) => bytes,
            SizeText::Text(text) => parse_size(&text)?,
        };
        match bytes {
            0 => Err("a size of 0 is impossible".into()),
            _ if !bytes.is_multiple_of(PAGE) => {
                Err(format!("{bytes} bytes is not a multiple of a page ({PAGE} bytes)"))
            }
            _ => Ok(Size(bytes)),
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        Size::try_from(SizeText::Text(text.into()))
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let unit_start = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_start);
    let shift = match unit.trim() {
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(format!("`{text}` is not a size: write it like \"64 KiB\", \"4 MiB\" or \"1 GiB\"")),
    };
    let number: u64 =
        number.parse().map_err(|_| format!("`{text}` is not a size: the number is missing or too large"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is more than 64 bits can express"))
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(shift, _)| self.0.is_multiple_of(1 << shift) && self.0 > 0) {
            Some((shift, unit)) => write!(f, "{} {unit}", self.0 >> shift),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// An IPv4 network: `"10.0.2.0/24"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Cidr {
    /// Network address.
    pub address: Ipv4Addr,
    /// Prefix length, 8 to 30.
    pub prefix: u8,
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Cidr, String> {
        let wrong = || format!("`{text}` is not an IPv4 network: write it like \"10.0.2.0/24\"");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let cidr =
            Cidr { address: address.parse().map_err(|_| wrong())?, prefix: prefix.parse().map_err(|_| wrong())? };
        if !(8..=30).contains(&cidr.prefix) {
            return Err(format!("a network with prefix length {} is impossible here: 8 to 30", cidr.prefix));
        }
        if cidr.address.to_bits() & !cidr.mask() != 0 {
            let network = Ipv4Addr::from_bits(cidr.address.to_bits() & cidr.mask());
            return Err(format!("`{text}` has bits set beyond the prefix; the network is {network}/{}", cidr.prefix));
        }
        Ok(cidr)
    }
}

impl Cidr {
    fn mask(self) -> u32 {
        u32::MAX << (32 - self.prefix)
    }
    /// Whether an address lies in the network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask() == self.address.to_bits()
    }
    /// The address for all hosts of the network.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !self.mask())
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// An Ethernet address: `"02:00:0a:00:02:0f"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The locally administered address of a VM that names none: `02:00` and its IPv4 address.
    pub fn of(address: Ipv4Addr) -> Mac {
        Mac(usual_mac(address.octets()))
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Mac, String> {
        let wrong = || format!("`{text}` is not a MAC address: write it like \"02:00:0a:00:02:0f\"");
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *byte = hexadecimal(part).and_then(|value| u8::try_from(value).ok()).ok_or_else(wrong)?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        if mac[0] & 1 != 0 {
            return Err(format!("`{text}` is a multicast address; a VM needs a unicast one (even first byte)"));
        }
        Ok(Mac(mac))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A range of I/O ports, both ends included: `"0x3f8-0x3ff"` or `"0x64"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<PortRange, String> {
        let wrong = || format!("`{text}` is not a range of I/O ports: write it like \"0x3f8-0x3ff\"");
        let (first, last) = text.split_once('-').unwrap_or((&text, &text));
        let range = PortRange {
            first: first.trim().strip_prefix("0x").and_then(hexadecimal).ok_or_else(wrong)?,
            last: last.trim().strip_prefix("0x").and_then(hexadecimal).ok_or_else(wrong)?,
        };
        if range.first > range.last {
            return Err(format!("`{text}` ends before it begins"));
        }
        Ok(range)
    }
}

/// A number of hexadecimal digits alone: no sign, no prefix.
fn hexadecimal(digits: &str) -> Option<u16> {
    let plain = digits.chars().all(|c| c.is_ascii_hexdigit());
    u16::from_str_radix(digits, 16).ok().filter(|_| plain)
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#05x}-{:#05x}", self.first, self.last)
    }
}

/// PCI devices: vendor and device number, `"1af4:1041"`, or class, subclass and programming interface, `"class:010802"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct PciDevices(pub PciMatch);

impl TryFrom<String> for PciDevices {
    type Error = String;

    fn try_from(text: String) -> Result<PciDevices, String> {
        let number = |part: &str| hexadecimal(part).filter(|_| part.len() == 4);
        let class = |digits: &str| {
            let (high, low) = digits.split_at_checked(2).filter(|(high, low)| high.len() == 2 && low.len() == 4)?;
            Some(PciMatch::Class(u32::from(hexadecimal(high)?) << 16 | u32::from(hexadecimal(low)?)))
        };
        let devices = text.split_once(':').and_then(|halves| match halves {
            ("class", digits) => class(digits),
            (vendor, device) => Some(PciMatch::Id { vendor: number(vendor)?, device: number(device)? }),
        });
        let help = "write vendor:device like \"1af4:1041\", or class:CCSSPP (class, subclass, programming interface) like \"class:010802\"";
        devices.map(PciDevices).ok_or_else(|| format!("`{text}` is not a PCI device: {help}"))
    }
}

/// An IPv4 address, with an error that shows how to write one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Address(pub Ipv4Addr);

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Address, String> {
        let address = Ipv4Addr::from_str(&text);
        address.map(Address).map_err(|_| format!("`{text}` is not an IPv4 address: write it like \"10.0.2.15\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> Result<u64, String> {
        Size::try_from(SizeText::Text(text.into())).map(|size| size.0)
    }

    #[test]
    fn sizes() {
        assert_eq!(size("64 KiB"), Ok(65536));
        assert_eq!(size("4MiB"), Ok(4 << 20));
        assert!(size("1 KiB").expect_err("less than a page").contains("multiple of a page"));
        assert!(size("0 MiB").expect_err("nothing").contains("impossible"));
        assert!(size("MiB").expect_err("no number").contains("number is missing"));
        assert!(size("64 KB").expect_err("unit").contains("write it like"));
        assert!(size("99999999999 GiB").expect_err("too much").contains("64 bits"));
        assert_eq!(Size(65536).to_string(), "64 KiB");
        assert_eq!(Size(4096 + 1024 * 1024).to_string(), "1028 KiB");
    }

    #[test]
    fn networks() {
        let cidr = Cidr::try_from("10.0.2.0/24".to_string()).expect("a network");
        assert!(cidr.contains(Ipv4Addr::new(10, 0, 2, 15)) && !cidr.contains(Ipv4Addr::new(10, 0, 3, 1)));
        assert_eq!(cidr.broadcast(), Ipv4Addr::new(10, 0, 2, 255));
        for wrong in ["10.0.2.0", "10.0.2.0/33", "10.0.2.0/4", "10.0.2.1/24", "x/24"] {
            Cidr::try_from(wrong.to_string()).expect_err(wrong);
        }
    }

    #[test]
    fn macs() {
        let mac = Mac::of(Ipv4Addr::new(10, 0, 2, 15));
        assert_eq!(mac.to_string(), "02:00:0a:00:02:0f");
        assert_eq!(Mac::try_from(mac.to_string()), Ok(mac));
        for wrong in
            ["", "02:00:0a:00:02", "02:00:0a:00:02:0f:00", "2:0:a:0:2:f", "03:00:00:00:00:00", "0g:00:00:00:00:00"]
        {
            Mac::try_from(wrong.to_string()).expect_err(wrong);
        }
    }

    #[test]
    fn port_ranges_and_pci_devices() {
        assert_eq!(PortRange::try_from("0x3f8-0x3ff".to_string()), Ok(PortRange { first: 0x3f8, last: 0x3ff }));
        assert_eq!(PortRange::try_from("0x64".to_string()), Ok(PortRange { first: 0x64, last: 0x64 }));
        for wrong in ["0x3ff-0x3f8", "100", "0x10000", "0x-0x"] {
            PortRange::try_from(wrong.to_string()).expect_err(wrong);
        }
        for (text, devices) in [
            ("1af4:1041", PciMatch::Id { vendor: 0x1af4, device: 0x1041 }),
            ("class:010802", PciMatch::Class(0x01_0802)),
        ] {
            assert_eq!(PciDevices::try_from(text.to_string()), Ok(PciDevices(devices)));
            assert_eq!(devices.to_string(), text);
        }
        for wrong in
            ["1af4", "1af4:+041", "class:0108", "class:01080200", "class:01+802", "class:0é802", "Class:010802"]
        {
            PciDevices::try_from(wrong.to_string()).expect_err(wrong);
        }
    }
}
