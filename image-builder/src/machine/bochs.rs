//! Bochs: a PC of other make than QEMU's, which interprets one instruction after the other. It boots an image from a CD.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use super::qemu::{Forward, Network};
use crate::system::network::MACHINE_MAC;

/// Programs and files, and the Debian packages that have them.
pub const NEEDED: [(&str, &str); 3] = [("bochs", "bochs"), (BIOS, "bochsbios"), (VIDEO_BIOS, "vgabios")];
const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
const VIDEO_BIOS: &str = "/usr/share/vgabios/vgabios.bin";

/// A machine: Intel 440FX, an e1000 NIC, one processor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bochs {
    /// The image that it boots.
    pub image: PathBuf,
    /// Memory in MiB.
    pub memory: u64,
    /// What its NIC is connected to: the user-mode network, or nothing.
    pub network: Network,
}

/// What to type first: Debian's Bochs is a debugger, too, and waits. Others pay no attention.
pub const GO: &[u8] = b"c\n";

impl Bochs {
    /// Writes its configuration into a folder. The answer starts it; the serial line is its standard output.
    pub fn command(&self, folder: &Path) -> Result<Command> {
        let network = folder.join("bochs-network.conf");
        let configuration = folder.join("bochsrc");
        let write = |path: &Path, text: String| {
            fs::write(path, text).into_diagnostic().wrap_err_with(|| miette!("{} cannot be written", path.display()))
        };
        write(&network, self.network_configuration())?;
        write(&configuration, self.configuration(&network, &folder.join("bochs.log")))?;
        let mut command = Command::new("bochs");
        command.arg("-q").arg("-f").arg(configuration);
        Ok(command)
    }

    fn configuration(&self, network: &Path, log: &Path) -> String {
        let (nic, nic_slot) = match self.network {
            Network::User { .. } => {
                let script = network.display();
                (format!("e1000: enabled=1, mac={MACHINE_MAC}, ethmod=slirp, script=\"{script}\"\n"), ", slot2=e1000")
            }
            _ => Default::default(),
        };
        // The screen is that of a VNC server that waits for nobody. It knows 256 colours at most; given such a mode, GRUB 2.06 writes their
        // palette beyond the room for it, and crashes. So there is none, only text. Nor is there sound: its mixer writes beyond its buffer on
        // a host without a sound card. Time follows the instructions, at about the speed of the host.
        format!(
            "display_library: rfb, options=\"timeout=0\"\n\
             megs: {memory}\n\
             cpu: model=corei7_skylake_x, count=1, ips=50000000, reset_on_triple_fault=0\n\
             romimage: file={BIOS}\n\
             vgaromimage: file={VIDEO_BIOS}\n\
             vga: extension=none\n\
             pci: enabled=1, chipset=i440fx, slot1=pcivga{nic_slot}\n\
             {nic}\
             ata0-master: type=cdrom, path=\"{image}\", status=inserted\n\
             boot: cdrom\n\
             speaker: enabled=0\n\
             sound: driver=dummy\n\
             com1: enabled=1, mode=file, dev=/dev/stdout\n\
             clock: sync=none\n\
             log: {log}\n\
             panic: action=fatal\n\
             error: action=report\n\
             info: action=ignore\n",
            memory = self.memory,
            image = self.image.display(),
            log = log.display(),
        )
    }

    fn network_configuration(&self) -> String {
        let Network::User { network: (address, prefix), gateway, name_server, forwards } = &self.network else {
            return String::new();
        };
        let mask = Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(*prefix)).unwrap_or(0));
        let mut text =
            format!("# slirp config\nnet = {address}\nmask = {mask}\nhost = {gateway}\ndns = {name_server}\n");
        // Bochs takes no more than five.
        for Forward { host, address, port } in forwards.iter().take(5) {
            text += &format!("hostfwd = tcp:127.0.0.1:{host}-{address}:{port}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration() {
        let forward = Forward { host: 8080, address: Ipv4Addr::new(10, 0, 2, 15), port: 80 };
        let network = Network::User {
            network: (Ipv4Addr::new(10, 0, 2, 0), 24),
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            name_server: Ipv4Addr::new(10, 0, 2, 3),
            forwards: vec![forward; 7],
        };
        let bochs = Bochs { image: "a.img".into(), memory: 256, network };
        let text = bochs.configuration(Path::new("n"), Path::new("l"));
        for part in ["megs: 256\n", "slot2=e1000\n", "ethmod=slirp, script=\"n\"\n", "path=\"a.img\"", "log: l\n"] {
            assert!(text.contains(part), "{part} is missing: {text}");
        }
        let network = bochs.network_configuration();
        assert!(network.starts_with("# slirp config\nnet = 10.0.2.0\nmask = 255.255.255.0\n"), "{network}");
        assert_eq!(network.matches("hostfwd = tcp:127.0.0.1:8080-10.0.2.15:80\n").count(), 5);
        let alone = Bochs { network: Network::None, ..bochs };
        assert!(!alone.configuration(Path::new("n"), Path::new("l")).contains("e1000"));
    }
}
