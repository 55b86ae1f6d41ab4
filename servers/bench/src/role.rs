//! What a program is.

/// A part in a measurement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Measures the microkernel.
    Client,
    /// Answers the client.
    Peer,
    /// Measures the throughput of a disk.
    Disk,
    /// Writes and reads a disk and checks everything.
    DiskCheck,
    /// Measures a disk's driver.
    DiskDriver,
    /// Measures a network driver.
    Net,
    /// Tells the figures of the pager and of the other servers, again and again.
    Figures,
}

impl Role {
    /// From the option `role` of the system file.
    pub fn from_option(option: Option<&str>) -> Result<Role, &'static str> {
        match option {
            Some("client") => Ok(Role::Client),
            Some("peer") => Ok(Role::Peer),
            Some("disk") => Ok(Role::Disk),
            Some("disk-check") => Ok(Role::DiskCheck),
            Some("disk-driver") => Ok(Role::DiskDriver),
            Some("net") => Ok(Role::Net),
            Some("figures") => Ok(Role::Figures),
            Some(_) => Err(
                "the option `role` is none of \"client\", \"peer\", \"disk\", \"disk-check\", \"disk-driver\", \"net\" and \"figures\"",
            ),
            None => Err("the option `role` is missing"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_these_roles() {
        assert_eq!(Role::from_option(Some("client")), Ok(Role::Client));
        assert_eq!(Role::from_option(Some("peer")), Ok(Role::Peer));
        assert_eq!(Role::from_option(Some("disk")), Ok(Role::Disk));
        assert_eq!(Role::from_option(Some("disk-check")), Ok(Role::DiskCheck));
        assert_eq!(Role::from_option(Some("disk-driver")), Ok(Role::DiskDriver));
        assert_eq!(Role::from_option(Some("net")), Ok(Role::Net));
        assert_eq!(Role::from_option(Some("figures")), Ok(Role::Figures));
        assert!(Role::from_option(Some("Peer")).is_err() && Role::from_option(None).is_err());
    }
}
