//! The model's disks: they answer in any order, or fail, and nothing that is under way at the same time may meet.

use super::{Model, SLOTS};
use crate::machine::Disks;
use protocol::{
    layout::PAGE,
    service::block_driver::{BUFFER, Operation, Status},
};
use std::{vec, vec::Vec};

#[derive(Clone, Debug)]
struct Pending {
    slot: u16,
    operation: Operation,
    block: u64,
    count: u32,
}

#[derive(Debug)]
pub(super) struct Disk {
    pub(super) bytes: Vec<u8>,
    buffers: Vec<Vec<u8>>,
    pub(super) taken: [bool; SLOTS as usize],
    pending: Vec<Pending>,
}

impl Disk {
    /// Full of what was there before.
    pub(super) fn new(blocks: u64) -> Disk {
        Disk {
            bytes: vec![0xdd; blocks as usize * PAGE as usize],
            buffers: vec![vec![0xbb; BUFFER]; usize::from(SLOTS)],
            taken: [false; SLOTS as usize],
            pending: Vec::new(),
        }
    }
}

impl Model {
    /// Carries out one of the requests under way; its disk and slot.
    pub fn answer(&mut self, disk: usize, which: usize, good: bool) -> Option<(u32, u16, Status)> {
        let number = disk;
        let disk = &mut self.disks[disk];
        if disk.pending.is_empty() {
            return None;
        }
        let Pending { slot, operation, block, count } = disk.pending.remove(which % disk.pending.len());
        let (start, length) = (block as usize * PAGE as usize, count as usize * PAGE as usize);
        let buffer = &mut disk.buffers[usize::from(slot)];
        if good {
            match operation {
                Operation::Read => buffer[..length].copy_from_slice(&disk.bytes[start..start + length]),
                Operation::Write => disk.bytes[start..start + length].copy_from_slice(&buffer[..length]),
                other => panic!("the pager asks for {other:?}"),
            }
        }
        Some((number as u32, slot, if good { Status::Ok } else { Status::Failed }))
    }

    pub fn disks(&self) -> usize {
        self.disks.len()
    }

    pub fn under_way(&self) -> usize {
        self.disks.iter().map(|disk| disk.pending.len()).sum()
    }

    pub fn taken_slots(&self) -> usize {
        self.disks.iter().flat_map(|disk| disk.taken).filter(|taken| *taken).count()
    }

    /// All bytes of the disks.
    pub fn disk_bytes(&mut self, disk: usize) -> &mut Vec<u8> {
        &mut self.disks[disk].bytes
    }
}

impl Disks for Model {
    fn take_slot(&mut self, disk: u32) -> Option<u16> {
        let taken = &mut self.disks[disk as usize].taken;
        let slot = taken.iter().position(|taken| !taken)?;
        taken[slot] = true;
        Some(slot as u16)
    }

    fn give_slot(&mut self, disk: u32, slot: u16) {
        let disk = &mut self.disks[disk as usize];
        assert!(core::mem::replace(&mut disk.taken[usize::from(slot)], false), "the slot was taken");
        assert!(disk.pending.iter().all(|pending| pending.slot != slot), "nothing is under way in it");
    }

    fn fill_buffer(&mut self, disk: u32, slot: u16, offset: usize, from: &[u8]) {
        self.now += self.sealing * (from.len() as u64 / PAGE);
        let disk = &mut self.disks[disk as usize];
        assert!(disk.taken[usize::from(slot)]);
        disk.buffers[usize::from(slot)][offset..offset + from.len()].copy_from_slice(from);
    }

    fn read_buffer(&mut self, disk: u32, slot: u16, offset: usize, into: &mut [u8]) {
        self.now += self.sealing * (into.len() as u64 / PAGE);
        let disk = &mut self.disks[disk as usize];
        assert!(disk.taken[usize::from(slot)]);
        into.copy_from_slice(&disk.buffers[usize::from(slot)][offset..offset + into.len()]);
    }

    fn submit(&mut self, disk: u32, slot: u16, operation: Operation, block: u64, count: u32) {
        self.call();
        let disk = &mut self.disks[disk as usize];
        assert!(disk.taken[usize::from(slot)] && (1..=16).contains(&count));
        assert!((block as usize + count as usize) * PAGE as usize <= disk.bytes.len(), "within the partition");
        // Nothing that is under way at the same time may meet: it would be in no order.
        for other in &disk.pending {
            let apart = block + u64::from(count) <= other.block || other.block + u64::from(other.count) <= block;
            assert!(apart || (operation == Operation::Read && other.operation == Operation::Read), "two requests meet");
        }
        disk.pending.push(Pending { slot, operation, block, count });
    }
}
