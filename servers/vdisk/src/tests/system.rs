//! The server on a model of the machine.

use crate::{
    model::{Model, WINDOW},
    requests::Rights,
    serve::Server,
    store::BLOCK,
};
use alloc::{collections::BTreeMap, vec::Vec};
use protocol::service::vdisk::{DiskInfo, Request, Response, Wanted};

pub type Ticket = u32;

/// The server on a model.
pub struct System {
    pub model: Model,
    pub server: Server<Ticket>,
    pub next: Ticket,
    pub responses: BTreeMap<Ticket, Response>,
}

impl System {
    pub fn new(seed: u64, blocks: u64) -> System {
        let model = Model::new(seed, blocks, 8);
        let mut system = System { model, server: Server::new(), next: 0, responses: BTreeMap::new() };
        system.server.mount(blocks);
        system
    }

    /// A round of the server, and perhaps of everything else.
    pub fn round(&mut self) -> bool {
        let busy = self.server.work(&mut self.model);
        for _ in 0..self.model.chance.below(4) {
            self.model.step();
        }
        if self.model.chance.one_in(3)
            && let Some(vm) = self.model.page_in()
        {
            self.server.brought(vm);
        }
        if self.server.take_retry() {
            self.server.unpark_all();
        }
        let _ = self.server.report(u64::MAX - 1);
        while let Some((ticket, response)) = self.server.response() {
            assert_eq!(self.responses.insert(ticket, response), None);
        }
        busy
    }

    /// Until nothing happens any more.
    pub fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..100_000 {
            let busy = self.round();
            quiet = if busy || !self.model.is_quiet() || !self.model.asked.is_empty() { 0 } else { quiet + 1 };
            if quiet > 30 {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    pub fn begin(&mut self, request: Request) -> Ticket {
        self.next += 1;
        if let Some(response) = self.server.request(&mut self.model, Rights::Loader, self.next, request) {
            self.responses.insert(self.next, response);
        }
        self.next
    }

    pub fn ask(&mut self, request: Request) -> Response {
        let ticket = self.begin(request);
        for _ in 0..10_000 {
            if let Some(response) = self.responses.remove(&ticket) {
                return response;
            }
            self.round();
        }
        panic!("no answer");
    }

    pub fn create(&mut self, name: &str, blocks: u64) -> Response {
        self.ask(Request::Create { name: name.into(), blocks })
    }

    pub fn find(&mut self, name: &str) -> Option<DiskInfo> {
        match self.ask(Request::Find(name.into())) {
            Response::Disk(info) => Some(info),
            _ => None,
        }
    }

    pub fn attach(&mut self, vm: u64, pages: u64, disks: &[(&str, bool)]) -> Response {
        let at = match self.model.vms.get(&vm) {
            Some(memory) => memory.at,
            None => self.model.add_vm(vm, pages),
        };
        let length = self.model.vms[&vm].bytes.len() as u64;
        let disks = disks.iter().map(|(name, read_only)| Wanted { name: (*name).into(), read_only: *read_only });
        self.ask(Request::Attach { vm, at, queue: WINDOW, length, disks: disks.collect() })
    }

    pub fn restart(&mut self) {
        self.model.forget_server();
        self.server = Server::new();
        self.responses.clear();
        self.server.mount(self.model.blocks());
    }
}

pub fn disk_bytes(system: &System, name: &str) -> Option<Vec<u8>> {
    let table = &system.server.changes.store()?.table;
    let disk = table.get(name)?;
    let block = |block| disk.place(block, 1).unwrap().first as usize * BLOCK;
    Some((0..disk.blocks).flat_map(|b| system.model.medium[block(b)..block(b) + BLOCK].to_vec()).collect())
}
