//! What the program knows of itself: set once, before `main`.

use crate::{client::Client, ranges::Ranges, slots::SlotSet};
use alloc::string::String;
use protocol::{
    boot::{self, BootInfo},
    capability::SLOTS,
    layout,
    manifest::{Resource, Startup, StartupResource},
    service::console::Console,
};
use spin::{Mutex, Once};

/// Page tables cover this many bytes: mappings begin at such multiples, so that two never share what one leaves behind.
const TABLE_SPAN: u64 = 2 << 20;

/// See the module.
pub struct State {
    /// Name of the server.
    pub name: String,
    /// Slot of the debug line.
    pub debug: Option<u8>,
    /// The console, for log lines.
    pub console: Option<Mutex<Client<Console>>>,
    /// TSC at time 0.
    pub tsc_base: u64,
    /// Scale of the TSC.
    pub tsc_multiplier: u64,
    /// Slot of the own memory.
    pub own_slot: u8,
    /// Frames of the own memory that are free, for page tables.
    pub own_free: Mutex<Ranges>,
    /// Addresses from [`layout::MAPPINGS`] on that are free.
    pub addresses: Mutex<Ranges>,
    /// Empty slots.
    pub slots: Mutex<SlotSet>,
    /// Resources, as the startup page has them.
    pub resources: alloc::vec::Vec<StartupResource>,
}

static STATE: Once<State> = Once::new();

/// The state; `None` before it is set.
pub fn get() -> Option<&'static State> {
    STATE.get()
}

/// Name of the running server; empty before `main`.
pub fn name() -> &'static str {
    get().map_or("", |state| state.name.as_str())
}

/// Sets the state of a server.
pub fn set_server(startup: &Startup) {
    let resource = |wanted: &Resource| startup.resources.iter().find(|r| r.resource == *wanted).map(|r| r.slot);
    let console = startup.channel("console").map(|channel| Mutex::new(Client::new(channel.slot)));
    let mapped = startup.resources.iter().filter(|resource| resource.address != 0);
    let end = mapped.map(|r| r.address.saturating_add(r.count.saturating_mul(layout::PAGE))).max();
    let first_address =
        end.unwrap_or(0).clamp(layout::MAPPINGS, layout::SPACE_END - TABLE_SPAN).next_multiple_of(TABLE_SPAN);
    STATE.call_once(|| State {
        name: startup.name.clone(),
        debug: resource(&Resource::Debug),
        console,
        tsc_base: startup.tsc_base,
        tsc_multiplier: startup.tsc_multiplier,
        own_slot: startup.own_slot,
        own_free: Mutex::new(Ranges::new(startup.own_free_first, startup.own_free_count)),
        addresses: Mutex::new(Ranges::new(first_address, layout::SPACE_END - first_address)),
        slots: Mutex::new(SlotSet::new(startup.first_free_slot..SLOTS as u8)),
        resources: startup.resources.clone(),
    });
}

/// Sets the state of `init`.
pub fn set_init(boot: &BootInfo) {
    let more = boot.more_memory_count.min(boot::EXTENTS as u64) as u8;
    STATE.call_once(|| State {
        name: String::from("init"),
        debug: Some(boot::slot::DEBUG),
        console: None,
        tsc_base: boot.tsc_base,
        tsc_multiplier: boot.tsc_multiplier,
        own_slot: boot::slot::OWN,
        own_free: Mutex::new(Ranges::new(boot.own_free.first, boot.own_free.count)),
        addresses: Mutex::new(Ranges::new(layout::MAPPINGS, layout::SPACE_END - layout::MAPPINGS)),
        slots: Mutex::new(SlotSet::new(boot::slot::MORE_MEMORY + more..SLOTS as u8)),
        resources: alloc::vec::Vec::new(),
    });
}
