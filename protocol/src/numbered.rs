//! Names that end in a number, as those of VMs of a kind do: `httpd-1`, `httpd-2`, …

/// Takes a name apart: the longest number at its end that is written as it would be printed, if there is one.
pub fn split(name: &str) -> (&str, Option<u32>) {
    let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
    for at in name.len() - digits..name.len() {
        let (stem, number) = name.split_at(at);
        let plain = number == "0" || !number.starts_with('0');
        if let Ok(value) = number.parse()
            && plain
        {
            return (stem, Some(value));
        }
    }
    (name, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_numbers_are_taken_apart_rightly() {
        let cases = [
            ("a", "a", None),
            ("a1", "a", Some(1)),
            ("a007", "a00", Some(7)),
            ("a0", "a", Some(0)),
            ("a00", "a0", Some(0)),
            ("42", "", Some(42)),
            ("", "", None),
            ("x4294967295", "x", Some(u32::MAX)),
            ("x4294967296", "x4", Some(294967296)),
            ("x99999999999", "x99", Some(999999999)),
        ];
        for (name, stem, number) in cases {
            assert_eq!(split(name), (stem, number), "{name}");
        }
    }
}
