//! All servers: set up, started, restarted, given up.

use crate::{
    check,
    death::Death,
    extents::{Extents, Place},
    grants::{self, Given, Holdings, Source},
    machine::{Capability, Machine},
    policy::{History, Verdict},
    space::{self, Space},
};
use alloc::{format, string::String, vec::Vec};
use protocol::{
    abi::{Error, NEVER, Target},
    boot::{self, Framebuffer},
    bundle,
    domain::{Control, DomainParameters, Event, EventKind, line},
    image::Image,
    layout::{PAGE, POOL_FRAMES_PER_TABLE, STACK_TOP},
    manifest::{Manifest, NO_DEVICE, Resource, Server, VmTable},
    memory::{MapKind, MapOperation},
    service::init::{Request, Response, ServerInfo, State},
};
use server_runtime::mapping;

/// First frame number beyond 4 GiB: devices with 32-bit addresses reach what is below.
const BELOW_4_GIB: u64 = 1 << 20;
/// Events taken at a time.
const EVENTS: usize = 16;

/// Everything that is the same at each start of a server.
struct Plan {
    programs: Vec<Program>,
    given: Given,
}

/// A program of a server, in the server's memory.
struct Program {
    image: Image,
    /// Where it lies in the bundle.
    file: core::ops::Range<usize>,
    space: Space,
}

/// One server.
struct Member {
    plan: Plan,
    /// Which of its programs it runs.
    program: usize,
    /// `None` after it was given up.
    domain: Option<Target>,
    state: State,
    restarts: u32,
    history: History,
    /// When it is started again; [`NEVER`] if it is not to be.
    restart_at: u64,
}

/// What cannot be carried out: the reason, for people.
pub type Refusal = String;

/// The servers of a manifest.
pub struct System<'a, M> {
    machine: M,
    bundle: &'a [u8],
    manifest: Manifest,
    holdings: Holdings,
    members: Vec<Member>,
}

/// A step of setting up a server, as an error names it.
fn step<T>(what: &str, result: Result<T, Error>) -> Result<T, Refusal> {
    result.map_err(|error| format!("{what}: {error}"))
}

impl<'a, M: Machine> System<'a, M> {
    /// Reads the manifest in `bundle` and plans the system in the free memory `extents`. Nothing is started yet.
    pub fn plan(
        mut machine: M,
        bundle: &'a [u8],
        mut extents: Extents,
        mut holdings: Holdings,
    ) -> Result<System<'a, M>, Refusal> {
        let manifest = read_manifest(bundle).map_err(|reason| format!("manifest refused: {reason}"))?;
        let memory = extents.total();
        let no_room = |what: String| move || format!("there is no memory for {what}");
        for resource in manifest.servers.iter().flat_map(|server| &server.resources) {
            let Resource::Shared { name, bytes } = resource else { continue };
            if !holdings.shared.contains_key(name) {
                let frames = bytes / PAGE;
                let place = extents.take_below(frames, BELOW_4_GIB).or_else(|| extents.take(frames));
                let place = place.ok_or_else(no_room(format!("shared memory {name:?}")))?;
                step("shared memory", machine.zero(place.slot, place.first * PAGE, place.count * PAGE))?;
                holdings.shared.insert(name.clone(), place);
            }
        }
        let mut places = Vec::new();
        for server in &manifest.servers {
            let place = extents.take(server.memory / PAGE);
            places.push(place.ok_or_else(no_room(format!("server {:?}", server.name)))?);
        }
        let pool_wanted = manifest.servers.iter().any(|server| server.resources.contains(&Resource::Pool));
        if pool_wanted {
            holdings.pool = extents.take_pool();
        }
        let mut members = Vec::new();
        for (index, place) in places.into_iter().enumerate() {
            let plan = Plan::new(&manifest, index, place, bundle, &holdings)
                .map_err(|reason| format!("server {:?} refused: {reason}", manifest.servers[index].name))?;
            members.push(Member {
                plan,
                program: 0,
                domain: None,
                state: State::GivenUp,
                restarts: 0,
                history: History::default(),
                restart_at: NEVER,
            });
        }
        let mib = |frames: u64| (frames * PAGE) >> 20;
        let (pool, unused) = (frames_of(&holdings.pool), extents.total());
        machine.log(format_args!(
            "{}: {} servers in {} MiB, pool {} MiB, unused {} MiB",
            manifest.name,
            members.len(),
            mib(memory - pool - unused),
            mib(pool),
            mib(unused),
        ));
        Ok(System { machine, bundle, manifest, holdings, members })
    }

    /// Creates and starts all servers, in order. On the first that the kernel refuses, all ends.
    pub fn start_all(&mut self) -> Result<(), Refusal> {
        let name = |system: &Self, index: usize| system.manifest.servers[index].name.clone();
        for index in 0..self.members.len() {
            self.create(index).map_err(|reason| format!("server {:?}: {reason}", name(self, index)))?;
        }
        for index in 0..self.members.len() {
            self.load(index).map_err(|reason| format!("server {:?}: {reason}", name(self, index)))?;
        }
        let microseconds = self.machine.now() / 1000;
        let count = self.members.len();
        self.machine.log(format_args!("{count} servers started, {microseconds} us after kernel entry"));
        Ok(())
    }

    /// Makes the domain of a server, stopped and empty.
    fn create(&mut self, index: usize) -> Result<(), Refusal> {
        let member = &mut self.members[index];
        let space = &member.plan.programs[member.program].space;
        let parameters = DomainParameters {
            root_frame: space.root,
            root_slot: space.zero.slot.into(),
            tag: index as u64,
            band: u64::from(self.manifest.servers[index].band),
            handler: Target::OWN.0,
            ..DomainParameters::default()
        };
        let domain = self.machine.create(space.zero.slot, space.block, &parameters);
        member.domain = Some(step("its domain", domain)?);
        Ok(())
    }

    /// Fills the memory, address space and slots of an empty domain, and starts it.
    fn load(&mut self, index: usize) -> Result<(), Refusal> {
        let System { machine, bundle, members, .. } = self;
        let member = &members[index];
        let domain = member.domain.ok_or("it has no domain")?;
        let Plan { programs, given } = &member.plan;
        let Program { image, file, space } = &programs[member.program];
        let slot = space.zero.slot;
        step("its memory", machine.zero(slot, space.zero.first * PAGE, space.zero.count * PAGE))?;
        let file = bundle.get(file.clone()).ok_or("its program is not there")?;
        for load in &space.loads {
            let (start, end) = (load.data_offset as usize, (load.data_offset + load.length) as usize);
            let data = file.get(start..end).ok_or("its program is not whole")?;
            step("its program", machine.copy(data, slot, load.physical))?;
        }
        let mut startup = given.startup.clone();
        let mut tables = space.tables.first..space.tables.first + space.tables.count;
        for mapping in &space.mappings {
            let operation = MapOperation {
                kind: MapKind::Map as u8,
                access: mapping.access.bits(),
                slot: mapping.place.slot,
                reserved: 0,
                count: u32::try_from(mapping.place.count).map_err(|_| "a mapping is too long")?,
                address: mapping.address,
                frame: mapping.place.first,
            };
            let mapped =
                mapping::apply(operation, slot, |operations| machine.map(domain, operations), || tables.next());
            match mapped {
                // A screen where the firmware says that there is memory, or none: the server does without.
                Err((error, _)) if mapping.place.slot == boot::slot::DEVICES => {
                    machine.log(format_args!("no screen for it at frame {:#x}: {error}", mapping.place.first));
                    startup.framebuffer = Framebuffer::default();
                }
                mapped => step("its address space", mapped.map_err(|(error, _)| error))?,
            }
        }
        startup.incarnation = member.restarts;
        // The manifest was checked: there are no more than a byte can count.
        startup.program = member.program as u8;
        startup.more_programs = member.program + 1 < programs.len();
        startup.heap = space.heap;
        (startup.own_free_first, startup.own_free_count) = (tables.start, tables.end - tables.start);
        for (resource, address) in given.foreign_resource.iter().zip(&space.foreign) {
            startup.resources[*resource].address = *address;
        }
        let page = startup.encode().map_err(|error| format!("its startup page: {error}"))?;
        if page.len() as u64 > PAGE {
            return Err(format!("its startup page has {} bytes, more than {PAGE}: too many options", page.len()));
        }
        step("its startup page", machine.copy(&page, slot, space.startup * PAGE))?;
        for grant in &given.grants {
            let from = match grant.source {
                Source::Slot(slot) => Capability::Slot(slot),
                // A server that was given up: calling it is `NoCapability` until it is started again.
                Source::Server(peer) => match members[peer].domain {
                    Some(peer) => Capability::Domain(peer),
                    None => continue,
                },
            };
            step("its capabilities", machine.grant(domain, grant.slot, from, grant.narrow.as_ref()))?;
        }
        step("its start", machine.control(domain, Control::Start, [image.entry, STACK_TOP, space.heap]))?;
        let member = &mut self.members[index];
        (member.state, member.restart_at) = (State::Running, NEVER);
        Ok(())
    }

    /// Takes the traps of servers that the kernel has queued.
    pub fn traps(&mut self) {
        loop {
            let mut events = [Event::default(); EVENTS];
            let taken = self.machine.collect(&mut events).unwrap_or(0);
            for event in &events[..taken.min(EVENTS)] {
                self.trap(event);
            }
            if taken == 0 {
                return;
            }
        }
    }

    fn trap(&mut self, event: &Event) {
        let Some(index) = usize::try_from(event.tag).ok().filter(|index| *index < self.members.len()) else {
            return;
        };
        if self.members[index].state != State::Running {
            return;
        }
        match (EventKind::from_u32(event.kind), self.members[index].domain) {
            // `ready` is for VMs; a server that says it goes on.
            (Some(EventKind::Ready), Some(domain)) => {
                let _ = self.machine.control(domain, Control::Resume, [0; 3]);
            }
            (Some(EventKind::Exit), Some(domain))
                if event.code == NO_DEVICE
                    && self.members[index].program + 1 < self.members[index].plan.programs.len() =>
            {
                self.next_program(index, domain);
            }
            _ => self.died(index, Death::Trap(*event)),
        }
    }

    /// The program of a server has found no device: starts the next one in its place.
    fn next_program(&mut self, index: usize, domain: Target) {
        let Server { name, programs, .. } = &self.manifest.servers[index];
        let member = &mut self.members[index];
        let file = |program: usize| programs.get(program).map_or("", |program| &program.file);
        let (before, next) = (file(member.program), file(member.program + 1));
        self.machine.log(format_args!("server {name}: no device for {before}; trying {next}"));
        member.program += 1;
        let reset = step("its reset", finish(&mut self.machine, domain, Control::Reset));
        match reset.and_then(|()| self.load(index)) {
            Ok(()) => self.tell_peers(index, false),
            Err(reason) => {
                self.machine.log(format_args!("server {}: {reason}", self.manifest.servers[index].name));
                self.died(index, Death::NotStarted);
            }
        }
    }

    /// Clears up after a dead server and decides what becomes of it.
    fn died(&mut self, index: usize, death: Death) {
        let Server { name, restart, .. } = &self.manifest.servers[index];
        self.machine.log(format_args!("server {name} died: {death}"));
        let member = &mut self.members[index];
        let now = self.machine.now();
        let mut verdict = member.history.died(*restart, now);
        // Its callers learn at once that it is gone; who calls from now on waits for the next one.
        if let Some(domain) = member.domain
            && let Err(error) = finish(&mut self.machine, domain, Control::Reset)
        {
            self.machine.log(format_args!("server {name} cannot be reset: {error}"));
            verdict = Verdict::GiveUp(member.restarts + 1);
        }
        match verdict {
            Verdict::After(pause) => {
                self.machine.log(format_args!("server {name} is restarted in {} ms", pause / 1_000_000));
                (member.state, member.restart_at) = (State::Restarting, now.saturating_add(pause));
            }
            Verdict::GiveUp(deaths) => {
                let plural = if deaths == 1 { "" } else { "s" };
                self.machine.log(format_args!("server {name} given up after {deaths} death{plural}"));
                (member.state, member.restart_at) = (State::GivenUp, NEVER);
                // Without a domain, its callers get an error instead of waiting for ever.
                if let Some(domain) = member.domain.take()
                    && let Err(error) = finish(&mut self.machine, domain, Control::Destroy)
                {
                    self.machine.log(format_args!("server {name} cannot be destroyed: {error}"));
                }
            }
        }
    }

    /// When [`System::restarts`] has something to do.
    pub fn next_restart(&self) -> u64 {
        self.members.iter().map(|member| member.restart_at).min().unwrap_or(NEVER)
    }

    /// Starts the servers again whose pause is over.
    pub fn restarts(&mut self) {
        let now = self.machine.now();
        for index in 0..self.members.len() {
            if self.members[index].restart_at <= now {
                self.restart(index);
            }
        }
    }

    /// Starts a dead server again; tells its peers.
    fn restart(&mut self, index: usize) {
        let name = self.manifest.servers[index].name.clone();
        let anew = self.members[index].domain.is_none();
        self.members[index].restarts = self.members[index].restarts.saturating_add(1);
        let loaded = if anew { self.create(index) } else { Ok(()) }.and_then(|()| self.load(index));
        if let Err(reason) = loaded {
            self.machine.log(format_args!("server {name}: {reason}"));
            return self.died(index, Death::NotStarted);
        }
        let restarts = self.members[index].restarts;
        self.machine.log(format_args!("server {name} restarted ({restarts} so far)"));
        self.tell_peers(index, anew);
    }

    /// Tells the peers of a server that was started again, so that they open their sessions anew. `anew`: its domain is a new one.
    fn tell_peers(&mut self, index: usize, anew: bool) {
        let name = &self.manifest.servers[index].name;
        for peer in 0..self.members.len() {
            let Some(domain) = self.members[peer].domain else { continue };
            let ends: Vec<_> = self.members[peer].plan.given.grants.clone();
            let mut ends = ends.into_iter().filter(|grant| grant.source == Source::Server(index)).peekable();
            if ends.peek().is_none() || self.members[peer].state != State::Running {
                continue;
            }
            // A new domain is none that the peer's capabilities reach: give it others.
            if let (true, Some(server)) = (anew, self.members[index].domain) {
                for grant in ends {
                    let from = Capability::Domain(server);
                    if let Err(error) = self.machine.grant(domain, grant.slot, from, grant.narrow.as_ref()) {
                        self.machine.log(format_args!("server {name}: its peer {peer} cannot reach it: {error}"));
                    }
                }
            }
            if let Err(error) = self.machine.raise(domain, line::PEER_RESTARTED) {
                self.machine.log(format_args!("server {name}: its peer {peer} cannot be told: {error}"));
            }
        }
    }

    /// Carries out a request of the operator.
    pub fn request(&mut self, request: &Request) -> Response {
        match request {
            Request::List => Response::Servers(self.list()),
            Request::Kill(name) => self.with(name, |system, index| {
                let Some(domain) = system.members[index].domain else { return Response::WrongState };
                if system.members[index].state != State::Running {
                    return Response::WrongState;
                }
                // The reset that follows stops it too; this only ends it at once, and cannot fail but for a domain gone.
                let _ = system.machine.control(domain, Control::Stop, [0; 3]);
                system.died(index, Death::Killed);
                Response::Done
            }),
            Request::Start(name) => self.with(name, |system, index| {
                if system.members[index].state != State::GivenUp {
                    return Response::WrongState;
                }
                system.members[index].history.forget();
                // There may be another device now.
                system.members[index].program = 0;
                system.restart(index);
                Response::Done
            }),
        }
    }

    fn with(&mut self, name: &str, work: impl FnOnce(&mut Self, usize) -> Response) -> Response {
        match self.manifest.servers.iter().position(|server| server.name == name) {
            Some(index) => work(self, index),
            None => Response::Unknown,
        }
    }

    fn list(&self) -> Vec<ServerInfo> {
        let info = |(server, member): (&Server, &Member)| ServerInfo {
            name: server.name.clone(),
            program: server.programs.get(member.program).map_or_else(String::new, |program| program.file.clone()),
            state: member.state,
            restarts: member.restarts,
            memory: server.memory >> 10,
            cpu_time: member
                .domain
                .and_then(|domain| self.machine.usage(domain).ok())
                .map_or(0, |usage| usage.cpu_time),
        };
        self.manifest.servers.iter().zip(&self.members).map(info).collect()
    }

    /// What servers hold beyond their own memory.
    pub fn holdings(&self) -> &Holdings {
        &self.holdings
    }

    /// The machine.
    pub fn machine(&mut self) -> &mut M {
        &mut self.machine
    }
}

/// A control operation that takes many steps, to its end.
fn finish(machine: &mut impl Machine, domain: Target, control: Control) -> Result<(), Error> {
    loop {
        match machine.control(domain, control, [0; 3]) {
            Err(Error::Again) => {}
            done => return done,
        }
    }
}

fn frames_of(places: &[Place]) -> u64 {
    places.iter().map(|place| place.count).sum()
}

/// The manifest of a bundle, checked.
fn read_manifest(bundle: &[u8]) -> Result<Manifest, Refusal> {
    let file = bundle::find(bundle, bundle::MANIFEST).map_err(|error| format!("{error}"))?;
    let file = file.ok_or_else(|| format!("the bundle has no file {:?}", bundle::MANIFEST))?;
    // The VMs are the loader's: nothing of them is kept here.
    let (manifest, _) = VmTable::decode(file.data).map_err(|error| format!("it is damaged ({error})"))?;
    check::check(&manifest)?;
    Ok(manifest)
}

impl Plan {
    fn new(manifest: &Manifest, index: usize, own: Place, bundle: &[u8], holdings: &Holdings) -> Result<Plan, Refusal> {
        let server = &manifest.servers[index];
        let given = grants::give(manifest, index, own, holdings)?;
        // Whoever manages the pool keeps something of each frame.
        let pool = if server.resources.contains(&Resource::Pool) { frames_of(&holdings.pool) } else { 0 };
        let more_tables = pool.div_ceil(POOL_FRAMES_PER_TABLE).min(own.count / 2);
        let mut programs = Vec::new();
        for program in &server.programs {
            let name = &program.file;
            let file = bundle::find(bundle, name).map_err(|error| format!("{error}"))?;
            let file = file.ok_or_else(|| format!("the bundle has no file {name:?}"))?;
            let image = Image::program(file.data).map_err(|error| format!("program {name:?}: {error}"))?;
            let space = space::plan(own, &image, &given.foreign, more_tables).map_err(|small| {
                let (needed, has) = (small.needed >> 10, server.memory >> 10);
                format!("program {name:?} needs {needed} KiB of memory, and the server has {has} KiB")
            })?;
            programs.push(Program { image, file: file.offset..file.offset + file.data.len(), space });
        }
        Ok(Plan { programs, given })
    }
}
