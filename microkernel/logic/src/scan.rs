//! `scan`: which pages of a domain were used, for its pager.

use crate::{
    Frame, Kernel, Machine,
    kernel::Outcome,
    paging::{Entry, UserRange},
};
use protocol::{
    abi::{Error, Target},
    capability::Rights,
    layout::PAGE,
    memory::{PageState, SCAN_PAGES, Scan},
};

impl<M: Machine> Kernel<M> {
    /// `Number::Scan`.
    pub(crate) fn scan(&mut self, me: Frame) -> Outcome {
        let block = self.machine.block(me);
        let (target, my_root) = (Target(block.registers.rdi), block.root);
        let [address, pages, to, action, ..] = block.registers.words;
        let action = u8::try_from(action).ok().and_then(Scan::from_bits).ok_or(Error::BadArgument)?;
        let domain = self.named_domain(me, target, Rights::CONTROL)?.0;
        if pages > SCAN_PAGES as u64 || !address.is_multiple_of(PAGE) {
            return Err(Error::BadArgument.into());
        }
        UserRange::new(address, pages * PAGE)?;
        let range = UserRange::new(to, pages)?;
        // Nothing may change before it is sure that the answer can be written.
        self.probe_user(my_root, range, true)?;
        if !action.is_empty() {
            self.recall(domain);
        }
        let root = self.machine.block(domain).root;
        let loaded = self.is_loaded(domain);
        let mut states = [0; SCAN_PAGES];
        let states = states.get_mut(..pages as usize).ok_or(Error::BadArgument)?;
        let mut at = address;
        for state in states.iter_mut() {
            *state = self.scan_page(root, at, action, loaded).bits();
            at += PAGE;
        }
        self.write_user(my_root, range, states)?;
        Ok(())
    }

    fn scan_page(&mut self, root: Frame, address: u64, action: Scan, loaded: bool) -> PageState {
        let Some(table) = self.leaf_table(root, address) else { return PageState::empty() };
        let entry = self.entry_in(table, address);
        if !entry.is_present() {
            return PageState::empty();
        }
        let mut state = PageState::PRESENT;
        state.set(PageState::ACCESSED, entry.is_accessed());
        state.set(PageState::DIRTY, entry.is_dirty());
        state.set(PageState::WRITABLE, entry.is_writable());
        if action.contains(Scan::UNMAP) {
            self.set_entry(table, address, Entry::EMPTY);
            self.frames.unmap(entry.frame());
        } else if action.contains(Scan::CLEAR_ACCESSED) && entry.is_accessed() {
            self.set_entry(table, address, entry.unaccessed());
        } else {
            return state;
        }
        if loaded {
            self.machine.flush_page(root, address);
        }
        state
    }
}
