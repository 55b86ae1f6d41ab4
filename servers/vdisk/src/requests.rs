//! What clients ask.

use crate::{
    change::State,
    machine::{Guests, Machine},
    queue::Window,
    serve::Server,
    vms::{Unattached, in_the_way},
};
use alloc::{string::String, vec::Vec};
use protocol::service::vdisk::{DiskInfo, Request, Response, Wanted};

/// Bytes of a list that an answer has room for; a message has 4,096.
const LIST_BYTES: usize = 3500;
/// Upper bound of the bytes of a disk in a list, besides its name.
const INFO_BYTES: usize = 24;
/// VMs that are asked after when a disk is in use.
const ASKED_MAX: usize = 64;

/// What a client may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rights {
    /// Attach and detach, make and delete.
    Loader,
    /// Make and delete.
    Operator,
    /// Look.
    Nobody,
}

impl Rights {
    /// Those of the client with this name.
    pub fn of(name: &str) -> Rights {
        match name {
            "loader" => Rights::Loader,
            "supervisor" => Rights::Operator,
            _ => Rights::Nobody,
        }
    }

    fn allow(self, request: &Request) -> bool {
        match request {
            Request::Attach { .. } | Request::Detach(_) | Request::IsAttached(_) => self == Rights::Loader,
            Request::Create { .. } | Request::Delete(_) => self != Rights::Nobody,
            Request::Find(_) | Request::List { .. } | Request::Space => true,
        }
    }
}

impl<T: Copy> Server<T> {
    /// A request. `None`: it is answered by [`Server::response`], with `ticket`.
    pub fn request(
        &mut self,
        machine: &mut impl Machine,
        rights: Rights,
        ticket: T,
        request: Request,
    ) -> Option<Response> {
        if !rights.allow(&request) {
            return Some(Response::Denied);
        }
        match (&request, self.changes.state()) {
            (Request::Detach(vm), _) => {
                return Some(if self.leave(machine, *vm) { Response::Done } else { Response::NotFound });
            }
            (Request::IsAttached(vm), _) => {
                return Some(if self.vms.of(*vm).is_some() { Response::Done } else { Response::NotFound });
            }
            (_, State::Closed(why)) => return Some(Response::NoStore(why.clone())),
            (Request::Create { .. } | Request::Delete(_), _) | (_, State::Opening) => {}
            (Request::Attach { .. }, _) if !self.is_settled() => {}
            _ => return self.perform(machine, ticket, request),
        }
        self.changes.queue(ticket, request);
        self.change(machine);
        None
    }

    /// Carries out a request whose turn it is. `None`: it is answered later.
    pub(crate) fn perform(&mut self, machine: &mut impl Machine, ticket: T, request: Request) -> Option<Response> {
        let Some(store) = self.changes.store() else {
            return Some(match self.changes.state() {
                State::Closed(why) => Response::NoStore(why.clone()),
                _ => Response::NoStore(String::from("the store is not read yet")),
            });
        };
        let table = &store.table;
        Some(match &request {
            Request::Find(name) => match table.get(name) {
                Some(disk) => Response::Disk(self.vms.info(name, disk)),
                None => Response::NotFound,
            },
            Request::List { from } => self.list(*from as usize),
            Request::Space => {
                let (all, free) = table.space();
                Response::Space(all, free)
            }
            Request::Create { .. } | Request::Delete(_) => return self.begin_change(ticket, &request),
            Request::Attach { .. } => return self.attach(machine, ticket, request),
            Request::Detach(_) | Request::IsAttached(_) => Response::BadArgument,
        })
    }

    fn list(&self, from: usize) -> Response {
        let Some(store) = self.changes.store() else { return Response::NotFound };
        let mut disks: Vec<DiskInfo> = Vec::new();
        let mut bytes = 0;
        for (name, disk) in store.table.iter().skip(from) {
            bytes += name.len() + INFO_BYTES;
            if bytes > LIST_BYTES {
                let next = (from + disks.len()) as u32;
                return Response::Disks(disks, Some(next));
            }
            disks.push(self.vms.info(name, disk));
        }
        Response::Disks(disks, None)
    }

    fn attach(&mut self, machine: &mut impl Machine, ticket: T, request: Request) -> Option<Response> {
        let Request::Attach { vm, at, queue, length, disks } = &request else { return Some(Response::BadArgument) };
        let window = Window { address: *queue, length: *length };
        if let Some(session) = self.vms.is_attached_so(*vm, window, disks) {
            // The loader was restarted and does not know.
            self.enqueue(session);
            return Some(Response::Done);
        }
        self.leave(machine, *vm);
        if disks.iter().any(|disk| self.changes.is_deleting(&disk.name)) {
            return Some(Response::InUse);
        }
        let mut attached = self.try_attach(&request, window)?;
        if attached == Err(Unattached::InUse) && self.forget_dead(machine, disks) {
            attached = self.try_attach(&request, window)?;
        }
        Some(match attached {
            Ok(session) => {
                if let Some(vm) = self.vms.get_mut(session) {
                    vm.at = *at;
                }
                self.enqueue(session);
                Response::Done
            }
            Err(Unattached::Leaving) => {
                self.changes.wait_for_leaving(ticket, request);
                return None;
            }
            Err(Unattached::NotFound) => Response::NotFound,
            Err(Unattached::InUse) => Response::InUse,
            Err(Unattached::BadArgument) => Response::BadArgument,
        })
    }

    fn try_attach(&mut self, request: &Request, window: Window) -> Option<Result<u64, Unattached>> {
        let Request::Attach { vm, at, disks, .. } = request else { return None };
        let table = &self.changes.store()?.table;
        Some(self.vms.attach(*vm, *at, window, disks, table))
    }

    /// VMs may have ended while the loader was away, which then never says so: those in the way are asked after at the pager.
    /// Returns whether any was forgotten.
    fn forget_dead(&mut self, machine: &mut impl Machine, disks: &[Wanted]) -> bool {
        let holders = disks.iter().flat_map(|wanted| {
            self.vms.holders(&wanted.name).filter(|vm| !vm.leaving && in_the_way(vm, wanted)).map(|vm| vm.number)
        });
        let holders: Vec<_> = holders.take(ASKED_MAX).collect();
        let dead: Vec<_> = holders.into_iter().filter(|vm| !Guests::exists(machine, *vm)).collect();
        dead.iter().for_each(|vm| _ = self.leave(machine, *vm));
        !dead.is_empty()
    }
}
