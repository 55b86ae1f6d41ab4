//! Which of the two a program is.

/// A side of the measurement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Measures.
    Client,
    /// Answers.
    Peer,
}

impl Role {
    /// From the option `role` of the system file.
    pub fn from_option(option: Option<&str>) -> Result<Role, &'static str> {
        match option {
            Some("client") => Ok(Role::Client),
            Some("peer") => Ok(Role::Peer),
            Some(_) => Err("the option `role` is neither \"client\" nor \"peer\""),
            None => Err("the option `role` is missing: \"client\" or \"peer\""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_roles() {
        assert_eq!(Role::from_option(Some("client")), Ok(Role::Client));
        assert_eq!(Role::from_option(Some("peer")), Ok(Role::Peer));
        assert!(Role::from_option(Some("Peer")).is_err() && Role::from_option(None).is_err());
    }
}
