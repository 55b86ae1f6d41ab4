//! What is in a server's slots, and the startup page that says so.
//!
//! Slot 0 stays empty ("no slot"); 1 is the server's own memory; then come its channels, its clients and its resources,
//! each in the order of the manifest. All after them are the server's to use.

use crate::extents::Place;
use alloc::{collections::BTreeMap, format, string::String, vec, vec::Vec};
use protocol::{
    boot::{self, Framebuffer},
    capability::{Narrow, Rights, SLOTS},
    domain::line,
    layout::PAGE,
    manifest::{Channel, Manifest, Resource, Startup, StartupChannel, StartupClient, StartupResource},
    memory::Access,
};

/// Slot of a server's own memory.
const OWN_SLOT: u8 = 1;
/// Bytes of a screen that are mapped at most: 3840 times 2160 pixels of 4 bytes, twice. Of a larger one the upper part is used.
const SCREEN_MAX: u64 = 64 << 20;
/// Slots that every server has at least for what it is given later.
const SPARE_SLOTS: u8 = 8;

/// Where a capability comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// A slot of `init`.
    Slot(u8),
    /// The domain of the server with this index.
    Server(usize),
}

/// A capability for a slot of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    /// Slot of the server.
    pub slot: u8,
    /// Source.
    pub source: Source,
    /// What the copy keeps; `None`: everything.
    pub narrow: Option<Narrow>,
}

/// What servers are given beyond their own memory.
#[derive(Clone, Debug)]
pub struct Holdings {
    /// As in [`boot::BootInfo`].
    pub tsc_base: u64,
    /// As in [`boot::BootInfo`].
    pub tsc_multiplier: u64,
    /// As in [`boot::BootInfo`].
    pub rsdp: u64,
    /// Frames of the bundle.
    pub bundle: Place,
    /// Bytes of the bundle.
    pub bundle_length: u64,
    /// Frames behind [`boot::slot::DEVICES`].
    pub devices: Place,
    /// Shared memory by name.
    pub shared: BTreeMap<String, Place>,
    /// The extents of the pool of the VMs, if there is a holder.
    pub pool: Vec<Place>,
    /// As in [`boot::BootInfo`].
    pub framebuffer: Framebuffer,
}

/// What one server gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Given {
    /// Its slots.
    pub grants: Vec<Grant>,
    /// Its startup page, but for what follows from its memory: heap, free frames, and addresses of mapped resources.
    pub startup: Startup,
    /// Foreign memory to map.
    pub foreign: Vec<(Place, Access)>,
    /// For each of these, its place among the resources of the startup page.
    pub foreign_resource: Vec<usize>,
}

/// Works out what the server with this index gets.
pub fn give(manifest: &Manifest, index: usize, own: Place, holdings: &Holdings) -> Result<Given, String> {
    let server = manifest.servers.get(index).ok_or("there is no such server")?;
    let rights = Rights::READ | Rights::WRITE | Rights::MAP | Rights::CREATE;
    let mut slots = Slots { next: OWN_SLOT, grants: Vec::new() };
    let own_slot = slots.memory(own, rights, 0, 0)?;

    let mut channels = Vec::new();
    for channel in &server.channels {
        let (source, name) = match channel.to {
            Channel::INIT => (Source::Slot(boot::slot::SELF), "init"),
            to => {
                let called = manifest.servers.get(usize::from(to)).ok_or("it calls a server that is not there")?;
                (Source::Server(usize::from(to)), called.name.as_str())
            }
        };
        let slot = slots.domain(source, Rights::CALL | Rights::RAISE, channel.remote_line, index as u64)?;
        channels.push(StartupChannel { name: name.into(), slot, line: channel.line });
    }

    let is_platform = server.resources.contains(&Resource::Platform);
    let mut clients = Vec::new();
    for (badge, client) in manifest.servers.iter().enumerate() {
        let Some(channel) = client.channels.iter().find(|channel| usize::from(channel.to) == index) else {
            continue;
        };
        // What the platform server tells a driver are interrupts.
        let line = if is_platform { line::SHARED_INTERRUPT } else { channel.line };
        let slot = slots.domain(Source::Server(badge), Rights::RAISE, line, 0)?;
        let resources = || client.resources.iter();
        let isa =
            resources().filter_map(|r| if let Resource::IsaInterrupt { number } = r { Some(*number) } else { None });
        let shared = resources().filter_map(|resource| match resource {
            Resource::Shared { name, .. } => holdings.shared.get(name).map(|place| (place.first, place.count)),
            _ => None,
        });
        let drives = is_platform && client.programs.iter().any(|program| !program.pci_devices.is_empty());
        clients.push(StartupClient {
            name: client.name.clone(),
            badge: badge as u64,
            slot,
            line: channel.remote_line,
            pci_devices: client.programs.iter().map(|program| program.pci_devices.clone()).collect(),
            isa_interrupts: isa.collect(),
            shared: if drives { shared.collect() } else { Vec::new() },
        });
    }

    let mut resources = Vec::new();
    let mut foreign = Vec::new();
    let mut foreign_resource = Vec::new();
    let mut held = Vec::new();
    for resource in &server.resources {
        let extents = slots.resource(resource, holdings)?;
        held.extend(extents.into_iter().map(|extent| (resource, extent)));
    }
    for (resource, (slot, first, count)) in held {
        let mut length = 0;
        let mapped = match resource {
            Resource::Shared { .. } => Some(Access::WRITE),
            Resource::Screen if count > 0 => Some(Access::WRITE | Access::COMBINE),
            Resource::Bundle => {
                length = holdings.bundle_length;
                Some(Access::empty())
            }
            _ => None,
        };
        if let Some(access) = mapped {
            let place = match resource {
                Resource::Bundle => holdings.bundle,
                Resource::Screen => Place { slot: boot::slot::DEVICES, first, count },
                _ => Place { slot: slots.source_slot(slot), first, count },
            };
            foreign.push((place, access));
            foreign_resource.push(resources.len());
        }
        resources.push(StartupResource { resource: resource.clone(), slot, first, count, address: 0, length });
    }

    if usize::from(slots.next + SPARE_SLOTS) > SLOTS {
        return Err(too_many());
    }
    let has_screen = server.resources.contains(&Resource::Screen);
    let startup = Startup {
        name: server.name.clone(),
        options: server.options.clone(),
        tsc_base: holdings.tsc_base,
        tsc_multiplier: holdings.tsc_multiplier,
        rsdp: if is_platform { holdings.rsdp } else { 0 },
        framebuffer: if has_screen { holdings.framebuffer } else { Framebuffer::default() },
        channels,
        clients,
        resources,
        own_slot,
        first_free_slot: slots.next,
        ..Startup::default()
    };
    Ok(Given { grants: slots.grants, startup, foreign, foreign_resource })
}

/// The frames of a screen, as far as a server may have it; `None` if there is none, or its description is nonsense.
fn screen(framebuffer: &Framebuffer) -> Option<Place> {
    let bytes = u64::from(framebuffer.pitch).checked_mul(u64::from(framebuffer.height))?.min(SCREEN_MAX);
    let end = framebuffer.address.checked_add(bytes)?.checked_next_multiple_of(PAGE)?;
    let first = framebuffer.address / PAGE;
    // Frame numbers have 32 bits.
    (framebuffer.kind != Framebuffer::NONE && bytes > 0 && end / PAGE <= 1 << 32).then_some(Place {
        slot: boot::slot::DEVICES,
        first,
        count: end / PAGE - first,
    })
}

fn too_many() -> String {
    format!("it is given so much that less than {SPARE_SLOTS} of its {SLOTS} slots are left")
}

/// Slots of a server as they fill.
struct Slots {
    next: u8,
    grants: Vec<Grant>,
}

impl Slots {
    fn put(&mut self, source: Source, narrow: Option<Narrow>) -> Result<u8, String> {
        let slot = self.next;
        if usize::from(slot) >= SLOTS {
            return Err(too_many());
        }
        self.next += 1;
        self.grants.push(Grant { slot, source, narrow });
        Ok(slot)
    }

    fn domain(&mut self, source: Source, rights: Rights, line: u8, badge: u64) -> Result<u8, String> {
        self.put(source, Some(Narrow { rights: rights.bits(), line, badge, ..Narrow::default() }))
    }

    /// A part of an extent; `window` and `line` are those of domains in it, where they can be reached.
    fn memory(&mut self, place: Place, rights: Rights, window: u8, line: u8) -> Result<u8, String> {
        let count =
            u32::try_from(place.count).map_err(|_| format!("an extent of {} frames is too long", place.count))?;
        let narrow = Narrow { rights: rights.bits(), line, window, count, first: place.first, ..Narrow::default() };
        self.put(Source::Slot(place.slot), Some(narrow))
    }

    /// The slot of `init` that the capability in a slot of the server comes from.
    fn source_slot(&self, slot: u8) -> u8 {
        let source = self.grants.iter().find(|grant| grant.slot == slot).map(|grant| grant.source);
        if let Some(Source::Slot(slot)) = source { slot } else { 0 }
    }

    /// The slots of a resource, each with its first number and how many: one, but for a pool of several extents.
    fn resource(&mut self, resource: &Resource, holdings: &Holdings) -> Result<Vec<(u8, u64, u64)>, String> {
        let extent = |slot, place: Place| (slot, place.first, place.count);
        Ok(vec![match resource {
            Resource::Ports { first, count } => {
                let (first, count) = (u64::from(*first), u32::from(*count));
                let narrow = Narrow { first, count, ..Narrow::default() };
                (self.put(Source::Slot(boot::slot::PORTS), Some(narrow))?, first, u64::from(count))
            }
            Resource::Platform => {
                let devices = self.put(Source::Slot(boot::slot::DEVICES), None)?;
                self.put(Source::Slot(boot::slot::INTERRUPTS), None)?;
                self.put(Source::Slot(boot::slot::PORTS), None)?;
                extent(devices, holdings.devices)
            }
            Resource::Shared { name, .. } => {
                let place = *holdings.shared.get(name).ok_or_else(|| format!("there is no shared memory {name:?}"))?;
                extent(self.memory(place, Rights::READ | Rights::WRITE | Rights::MAP, 0, 0)?, place)
            }
            Resource::Bundle => extent(self.put(Source::Slot(boot::slot::BUNDLE), None)?, holdings.bundle),
            // The window is of no matter to a holder of CONTROL; the line is that of new clones.
            Resource::Pool => {
                return self.pool(holdings, Rights::all() - Rights::DEVICE - Rights::CALL, 1, line::CLONE);
            }
            Resource::Devices { device } => {
                return self.pool(holdings, Rights::WINDOW | Rights::RAISE, *device, *device);
            }
            Resource::Debug => (self.put(Source::Slot(boot::slot::DEBUG), None)?, 0, 0),
            // Mapped by `init`, and not the server's to map: no capability.
            Resource::Screen => screen(&holdings.framebuffer).map_or((0, 0, 0), |place| extent(0, place)),
            Resource::IsaInterrupt { .. } => (0, 0, 0),
        }])
    }

    /// The extents of the pool, with these rights.
    fn pool(
        &mut self,
        holdings: &Holdings,
        rights: Rights,
        window: u8,
        line: u8,
    ) -> Result<Vec<(u8, u64, u64)>, String> {
        if holdings.pool.is_empty() {
            return Err("there is no pool, because no server holds it".into());
        }
        let extent = |place: &Place| Ok((self.memory(*place, rights, window, line)?, place.first, place.count));
        holdings.pool.iter().map(extent).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{holdings, manifest};
    use protocol::manifest::PciMatch;

    fn given(index: usize) -> Given {
        let own = Place { slot: boot::slot::MEMORY, first: 0x400, count: 256 };
        give(&manifest(), index, own, &holdings()).unwrap()
    }

    #[test]
    fn channels_and_clients_are_two_ends_of_the_same() {
        let manifest = manifest();
        for (client, server) in manifest.servers.iter().enumerate() {
            for channel in server.channels.iter().filter(|channel| channel.to != Channel::INIT) {
                let called = usize::from(channel.to);
                let (ours, theirs) = (given(client), given(called));
                let end = ours.startup.channel(&manifest.servers[called].name).unwrap();
                let grant = ours.grants.iter().find(|grant| grant.slot == end.slot).unwrap();
                let narrow = grant.narrow.unwrap();
                assert_eq!(grant.source, Source::Server(called));
                assert_eq!(narrow.rights, (Rights::CALL | Rights::RAISE).bits());
                assert_eq!((narrow.badge, narrow.line), (client as u64, channel.remote_line));
                let other = theirs.startup.clients.iter().find(|c| c.badge == client as u64).unwrap();
                let back = theirs.grants.iter().find(|grant| grant.slot == other.slot).unwrap();
                assert_eq!(other.line, narrow.line);
                let line = if called == 0 { line::SHARED_INTERRUPT } else { end.line };
                assert_eq!((back.source, back.narrow.unwrap().line), (Source::Server(client), line));
                assert_eq!(back.narrow.unwrap().rights, Rights::RAISE.bits());
            }
        }
    }

    #[test]
    fn slots_are_used_once_and_the_rest_is_free() {
        for index in 0..manifest().servers.len() {
            let given = given(index);
            let slots: Vec<u8> = given.grants.iter().map(|grant| grant.slot).collect();
            assert_eq!(slots, (1..given.startup.first_free_slot).collect::<Vec<_>>());
        }
    }

    #[test]
    fn resources_are_what_the_manifest_says() {
        let platform = given(0);
        assert_eq!(platform.startup.rsdp, holdings().rsdp);
        let [devices, ports, _debug] = &platform.startup.resources[..] else { panic!("three resources") };
        let grant = |slot| platform.grants.iter().find(|grant| grant.slot == slot).unwrap();
        assert_eq!(grant(devices.slot).source, Source::Slot(boot::slot::DEVICES));
        assert_eq!(grant(devices.slot + 1).source, Source::Slot(boot::slot::INTERRUPTS));
        assert_eq!(grant(devices.slot + 2).source, Source::Slot(boot::slot::PORTS));
        let narrow = grant(ports.slot).narrow.unwrap();
        assert_eq!((narrow.first, narrow.count, narrow.rights), (0xcf8, 8, 0));
        assert_eq!(platform.startup.clients[0].pci_devices, [[PciMatch::Id { vendor: 0x1af4, device: 0x1041 }]]);
        assert_eq!(platform.startup.clients[0].isa_interrupts, [4]);
        assert_eq!(platform.startup.clients[0].shared, [(0x8000, 3)]);
        assert!(platform.startup.clients[1].shared.is_empty());

        let driver = given(1);
        assert_eq!(driver.startup.rsdp, 0);
        let shared =
            driver.startup.resources.iter().position(|r| matches!(r.resource, Resource::Shared { .. })).unwrap();
        assert_eq!(driver.foreign_resource, [shared]);
        assert_eq!(driver.foreign, [(holdings().shared["net0"], Access::WRITE)]);

        let swap = given(2);
        let [pool, more, devices, more_devices, bundle] = &swap.startup.resources[..] else { panic!("five resources") };
        let narrow = |slot| swap.grants.iter().find(|grant| grant.slot == slot).unwrap().narrow;
        assert!(Rights::from_bits_retain(narrow(pool.slot).unwrap().rights).contains(Rights::CONTROL | Rights::CREATE));
        // The pool's extents, each by a capability of its own that comes from its own slot of `init`.
        let source = |slot| swap.grants.iter().find(|grant| grant.slot == slot).unwrap().source;
        for (held, place) in [(pool, 0), (more, 1), (devices, 0), (more_devices, 1)] {
            let place = holdings().pool[place];
            assert_eq!((held.first, held.count), (place.first, place.count));
            assert_eq!(source(held.slot), Source::Slot(place.slot));
            let narrow = narrow(held.slot).unwrap();
            assert_eq!((narrow.first, u64::from(narrow.count)), (place.first, place.count));
        }
        assert_eq!(narrow(more.slot).unwrap().rights, narrow(pool.slot).unwrap().rights);
        for devices in [devices, more_devices].map(|devices| narrow(devices.slot).unwrap()) {
            assert_eq!((devices.rights, devices.window, devices.line), ((Rights::WINDOW | Rights::RAISE).bits(), 3, 3));
        }
        assert_eq!((bundle.length, narrow(bundle.slot)), (holdings().bundle_length, None));
    }

    #[test]
    fn the_screen_is_mapped_for_its_holder_if_there_is_one() {
        let own = Place { slot: boot::slot::MEMORY, first: 0x400, count: 256 };
        let mut manifest = manifest();
        manifest.servers[1].resources.push(Resource::Screen);
        let pixels = Framebuffer {
            address: 0xfd00_0010,
            pitch: 4096,
            width: 1024,
            height: 768,
            kind: Framebuffer::PIXELS,
            bits_per_pixel: 32,
            ..Framebuffer::default()
        };
        let with = |framebuffer| give(&manifest, 1, own, &Holdings { framebuffer, ..holdings() }).unwrap();
        let given = with(pixels);
        let place = Place { slot: boot::slot::DEVICES, first: 0xf_d000, count: 769 };
        assert_eq!(given.foreign.last(), Some(&(place, Access::WRITE | Access::COMBINE)));
        assert_eq!(given.startup.framebuffer, pixels);
        let resource = given.startup.resources.last().unwrap();
        assert_eq!((resource.slot, resource.first, resource.count), (0, 0xf_d000, 769));
        assert_eq!(give(&manifest, 0, own, &holdings()).unwrap().startup.framebuffer, Framebuffer::default());
        // None, nonsense, and one that is larger than anybody needs.
        for (address, pitch, height) in [(0, 0, 0), (u64::MAX - 9, 4096, 768), (1 << 50, 4096, 768), (1 << 32, 0, 768)]
        {
            let given = with(Framebuffer { address, pitch, height, ..pixels });
            assert_eq!((given.foreign.len(), given.startup.resources.last().unwrap().count), (1, 0), "{address:#x}");
        }
        let given = with(Framebuffer { address: 0, pitch: u32::MAX, height: u32::MAX, ..pixels });
        assert_eq!(given.foreign.last().unwrap().0.count, SCREEN_MAX / PAGE);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let own = Place { slot: 1, first: 0x400, count: 256 };
        let nothing = Holdings { pool: Vec::new(), shared: BTreeMap::new(), ..holdings() };
        assert!(give(&manifest(), 1, own, &nothing).unwrap_err().contains("net0"));
        assert!(give(&manifest(), 2, own, &nothing).unwrap_err().contains("pool"));
        let mut full = manifest();
        full.servers[0].resources = vec![Resource::Debug; SLOTS];
        assert!(give(&full, 0, own, &holdings()).unwrap_err().contains("slots"));
        full.servers[0].resources = vec![Resource::Debug; SLOTS - usize::from(SPARE_SLOTS)];
        assert!(give(&full, 0, own, &holdings()).unwrap_err().contains("slots"));
    }
}
