//! The cards that this driver is for.
//!
//! A card that is not here is refused, also when the system file names it: its registers may mean something else.

/// Intel, as a PCI vendor.
pub const INTEL: u16 = 0x8086;

/// Kinds that differ for the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// 8254x: on PCI or PCI-X.
    Pci,
    /// 8257x and later: on PCI Express.
    Express,
}

/// A card.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Model {
    /// PCI device.
    pub device: u16,
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
}

const fn model(device: u16, name: &'static str, kind: Kind) -> Model {
    Model { device, name, kind }
}

/// All of them, for copper.
///
/// Left out: the 82542 to 82544, which lack registers used here and whose link needs software; the 82541 and 82547, whose PHY
/// needs a program; the 82571 to 82573, which need errata worked around; the I219, whose reset may hang with full rings; the I210 and its family, which
/// have other descriptors.
pub const MODELS: &[Model] = &[
    model(0x100e, "82540EM", Kind::Pci),
    model(0x1015, "82540EM", Kind::Pci),
    model(0x1016, "82540EP", Kind::Pci),
    model(0x1017, "82540EP", Kind::Pci),
    model(0x101e, "82540EP", Kind::Pci),
    model(0x100f, "82545EM", Kind::Pci),
    model(0x1026, "82545GM", Kind::Pci),
    model(0x1010, "82546EB", Kind::Pci),
    model(0x1079, "82546GB", Kind::Pci),
    model(0x10d3, "82574L", Kind::Express),
    model(0x10f6, "82574LA", Kind::Express),
    model(0x150c, "82583V", Kind::Express),
    model(0x1502, "82579LM", Kind::Express),
    model(0x1503, "82579V", Kind::Express),
    model(0x153a, "I217-LM", Kind::Express),
    model(0x153b, "I217-V", Kind::Express),
    model(0x155a, "I218-LM", Kind::Express),
    model(0x1559, "I218-V", Kind::Express),
];

/// The card with these PCI numbers.
pub fn find(vendor: u16, device: u16) -> Option<Model> {
    MODELS.iter().find(|model| vendor == INTEL && model.device == device).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_named_once() {
        for (index, model) in MODELS.iter().enumerate() {
            assert!(MODELS[..index].iter().all(|other| other.device != model.device), "{model:x?}");
            assert_eq!(find(INTEL, model.device), Some(*model));
        }
        assert_eq!(find(0x10ec, 0x100e), None);
        assert_eq!(find(INTEL, 0x1533), None);
    }
}
