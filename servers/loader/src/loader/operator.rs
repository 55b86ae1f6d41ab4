//! What the operator asks for.

use super::{LOOKS_AT_ONCE, Loader, MANY_AT_ONCE, STOPPED, unexpected};
use crate::{
    peers::{Lent, Peers},
    table::State,
    text,
};
use alloc::{borrow::ToOwned, format, vec::Vec};
use protocol::{
    layout::PAGE,
    service::{
        loader::{MemoryInfo, Request, Response, VmInfo},
        pager,
    },
};

/// Bytes of a list that an answer has room for; a message has 4,096.
const LIST_BYTES: usize = 3500;
/// Upper bound of the numbers in an entry of a list, encoded, besides its texts.
const ENTRY_BYTES: usize = 64;

impl Loader<'_> {
    /// Carries out a request of the operator.
    pub fn request(&mut self, peers: &mut impl Peers, request: &Request) -> Response {
        match request {
            Request::List { from } => self.list(peers, *from),
            Request::Start(name) => match self.named(name) {
                None => Response::Unknown,
                Some(index) if self.table.running(index).is_some() => Response::WrongState,
                Some(index) => match self.start(peers, index) {
                    Ok(()) => Response::Done,
                    Err(reason) => Response::Failed(reason),
                },
            },
            Request::Stop(name) => match self.named(name) {
                None => Response::Unknown,
                Some(index) if self.table.running(index).is_none() => Response::WrongState,
                Some(index) => {
                    self.give_up(peers, index, STOPPED);
                    Response::Done
                }
            },
            Request::StartAll { prefix, from } => self.many(peers, prefix, *from, true),
            Request::StopAll { prefix, from } => self.many(peers, prefix, *from, false),
            Request::Memory => match self.pager(peers, &pager::Request::Pool, Lent::Nothing) {
                Ok(pager::Response::Pool {
                    total,
                    free,
                    vms,
                    suspended,
                    waiting,
                    swap_total,
                    swap_free,
                    page_ins,
                    page_outs,
                    ..
                }) => {
                    let [total, free, swap_total, swap_free] =
                        [total, free, swap_total, swap_free].map(|pages| pages.saturating_mul(PAGE / 1024));
                    Response::Memory(MemoryInfo {
                        total,
                        free,
                        swap_total,
                        swap_free,
                        vms,
                        suspended,
                        waiting,
                        page_ins,
                        page_outs,
                    })
                }
                other => Response::Failed(format!("the pager did not say: {}", unexpected(other))),
            },
        }
    }

    /// Starts or ends VMs whose names begin so. Of each that is ended there is no line in the log: the operator wants all.
    fn many(&mut self, peers: &mut impl Peers, prefix: &str, from: u64, start: bool) -> Response {
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(self.table.len());
        let (mut batch, mut done, mut next) = (Vec::new(), 0, None);
        for index in from..self.table.len() {
            if batch.len() + done >= MANY_AT_ONCE || index - from >= LOOKS_AT_ONCE {
                next = Some(index as u64);
                break;
            }
            let running = self.table.running(index);
            if running.is_some() == start || !self.name(index).starts_with(prefix) {
                continue;
            }
            if start {
                batch.push(index);
            } else if let Some(vm) = self.table.set_stopped(index, STOPPED.to_owned()) {
                self.end(peers, index, vm);
                done += 1;
            }
        }
        let refused = self.start_batch(peers, &batch).len();
        Response::Many { done: (done + batch.len() - refused) as u64, refused: refused as u64, next }
    }

    /// VMs by number of their entry: `from` is 0 or what the answer before said.
    fn list(&mut self, peers: &mut impl Peers, from: u64) -> Response {
        let mut vms = Vec::new();
        let mut room = LIST_BYTES;
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        for index in from..self.table.len() {
            let Some(vm) = self.vms.get(index) else { break };
            let memory = self.guest(&vm).map_or(vm.memory, |guest| guest.memory);
            let Some(state) = self.table.state(index) else { break };
            let bytes = vm.name.len() + vm.image.len() + ENTRY_BYTES;
            let bytes = bytes + if let State::Stopped(why) = state { why.len() } else { 0 };
            if bytes > room && !vms.is_empty() {
                return Response::Vms(vms, Some(index as u64));
            }
            room = room.saturating_sub(bytes);
            let mut info = VmInfo {
                number: index as u64 + 1,
                name: vm.name,
                image: vm.image,
                address: vm.address,
                memory: memory / 1024,
                used: 0,
                cpu_time: 0,
                stopped: None,
            };
            match state {
                State::Stopped(why) => info.stopped = Some(text::reason(why).to_owned()),
                State::Running(number) => {
                    info.number = number;
                    if let Ok(pager::Response::Usage { frames, cpu_time, .. }) =
                        self.pager(peers, &pager::Request::Usage(number), Lent::Nothing)
                    {
                        (info.used, info.cpu_time) = (frames.saturating_mul(PAGE / 1024), cpu_time);
                    }
                }
            }
            vms.push(info);
        }
        Response::Vms(vms, None)
    }
}
